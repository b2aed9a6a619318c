"""The ways to evaluate candidates together, and the choice among them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.gradients import UpdateMap, batching, cosine_distance, squared_distance
from fedleak.gradients.explicit import NotExplicit
from fedleak.gradients.factored import FactoredUpdate, OuterProducts
from fedleak.records import TrainingFacts

CLASSES, SHAPE = 4, (2, 6, 6)
LABELS = torch.tensor([[0, 1], [3, 3], [2, 0]])


class Scaled(nn.Module):
    """It has a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(72))
        self.head = nn.Linear(72, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.flatten(1) * self.scale).sigmoid())


class Mixing(nn.Module):
    """Its samples meet outside of a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(72, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.head((x - x.mean(0)).sigmoid())


class Twice(nn.Module):
    """One layer is used twice, and its weight a third time by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(72, 72)
        self.head = nn.Linear(72, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.layer(x.flatten(1)).sigmoid()).sigmoid()
        return self.head(functional.linear(x, self.layer.weight))


class Branching(nn.Module):
    """Its control flow depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(72, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).sigmoid()
        return self.head(x**3 if x.sum().item() > 0 else x)


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def same_padding() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 2, 3, padding="same"), nn.Sigmoid(), nn.Flatten(), nn.Linear(72, CLASSES)
    )


def update_map(model: nn.Module, **options: object) -> UpdateMap:
    return UpdateMap(
        model,
        dict(model.named_parameters()),
        dict(model.named_buffers()),
        TrainingFacts(0.1, 1, 2, 2),
        **options,
    )


@pytest.fixture(autouse=True)
def _nothing_chosen_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedleak.gradients.update_map.PLANS", {})


@pytest.fixture
def inputs() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(3, 2, *SHAPE, dtype=torch.float64)


def objective(update: dict[str, Tensor], at: Tensor, _: slice) -> Tensor:
    return sum(value.flatten(1).square().sum(1) for value in update.values()) + at.flatten(1).sum(1)


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for actual, expected in zip(ours, theirs, strict=True):
        assert (actual - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("make", [Scaled, Mixing, Twice, Branching, dense, same_padding])
def test_whatever_is_chosen_is_right(make: Callable[[], nn.Module], inputs: Tensor) -> None:
    model = make().double()
    chosen = update_map(model).value_and_grad(objective, inputs, LABELS)
    assert_same(
        chosen, update_map(model, batching="loop").value_and_grad(objective, inputs, LABELS)
    )


@pytest.mark.parametrize("make", [Scaled, same_padding])
def test_a_parameter_without_a_rule_is_refused(
    make: Callable[[], nn.Module], inputs: Tensor
) -> None:
    with pytest.raises(NotExplicit, match=r"scale|same"):
        update_map(make().double(), batching="explicit").value_and_grad(objective, inputs, LABELS)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets evaluations take as long as told, whatever they take."""

    def install(**seconds: float) -> None:
        now = [0.0]
        choose = batching.choose

        def timed(name: str, way: batching.Evaluate) -> batching.Evaluate:
            def evaluate(x: Tensor, y: Tensor) -> object:
                now[0] += seconds[name] * len(x)
                return way(x, y)

            return evaluate

        def slowed(ways: dict[str, batching.Evaluate], *rest: object) -> batching.Plan:
            return choose({name: timed(name, way) for name, way in ways.items()}, *rest)

        monkeypatch.setattr("fedleak.gradients.update_map.choose", slowed)
        monkeypatch.setattr(batching.time, "perf_counter", lambda: now[0])

    return install


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"explicit": 1e-3, "vmap": 2e-3, "loop": 3e-3}, "explicit"),
        ({"explicit": 1.05e-3, "vmap": 1e-3, "loop": 3e-3}, "explicit"),
        ({"explicit": 2e-3, "vmap": 1e-3, "loop": 3e-3}, "vmap"),
        ({"explicit": 3e-3, "vmap": 2e-3, "loop": 1e-3}, "loop"),
    ],
)
def test_the_fastest_is_chosen(
    seconds: dict[str, float], expected: str, clock: Callable[..., None], inputs: Tensor
) -> None:
    clock(**seconds)
    plan = update_map(dense().double()).plan(inputs, LABELS)
    assert plan == batching.Plan(expected, 1 if expected == "loop" else len(inputs))


@pytest.mark.parametrize(
    ("make", "expected"), [(Scaled, "vmap"), (Mixing, "vmap"), (Branching, "loop")]
)
def test_a_way_that_cannot_be_gone_is_not_chosen(
    make: Callable[[], nn.Module], expected: str, clock: Callable[..., None], inputs: Tensor
) -> None:
    clock(explicit=1e-3, vmap=2e-3, loop=3e-3)
    assert update_map(make().double()).plan(inputs, LABELS).batching == expected


def test_the_choice_is_made_once_for_a_shape(
    monkeypatch: pytest.MonkeyPatch, inputs: Tensor
) -> None:
    calls = []

    def choose(*given: object) -> batching.Plan:
        calls.append(given)
        return batching.Plan("vmap", 3)

    monkeypatch.setattr("fedleak.gradients.update_map.choose", choose)
    mapping = update_map(dense().double())
    for _ in range(2):
        mapping.value_and_grad(objective, inputs, LABELS)
        mapping.vjp(inputs, LABELS, mapping(inputs, LABELS))
    assert len(calls) == 1
    mapping.value_and_grad(objective, inputs[:2], LABELS[:2])
    assert len(calls) == 2


def test_candidates_at_a_time_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch, clock: Callable[..., None], inputs: Tensor
) -> None:
    clock(explicit=1e-3, vmap=2e-3, loop=3e-3)
    monkeypatch.setattr(batching, "_available_memory", lambda: 0.0)
    assert update_map(dense().double()).plan(inputs, LABELS) == batching.Plan("explicit", 1)


def test_chunk_and_batching_can_be_given(inputs: Tensor) -> None:
    mapping = update_map(dense().double(), chunk=2, batching="explicit")
    assert mapping.plan(inputs, LABELS) == batching.Plan("explicit", 2)
    with pytest.raises(ValueError, match="one local step"):
        UpdateMap(
            dense(),
            {"1.bias": torch.zeros(8)},
            {},
            TrainingFacts(0.1, 2, 2, 2),
            batching="explicit",
        )


def test_weight_decay_and_soft_labels_in_the_explicit_way(inputs: Tensor) -> None:
    model = dense().double()
    told = TrainingFacts(0.1, 1, 2, 2, weight_decay=0.3)
    soft = torch.rand(3, 2, CLASSES, dtype=torch.float64).softmax(2)
    ours, theirs = (
        UpdateMap(model, dict(model.named_parameters()), {}, told, batching=way).value_and_grad(
            objective, inputs, soft
        )
        for way in ("explicit", "loop")
    )
    assert_same(ours, theirs)


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("distance", [cosine_distance, squared_distance])
def test_distances_from_factors(distance: Callable[..., Tensor], targets: int) -> None:
    """Values and gradients against the definition on the whole matrices."""
    torch.manual_seed(0)
    left, right = (torch.rand(3, 2, n, dtype=torch.float64, requires_grad=True) for n in (5, 7))
    bias = torch.rand(3, 5, dtype=torch.float64, requires_grad=True)
    target = {
        "weight": torch.rand(targets, 5, 7).double(),
        "bias": torch.rand(targets, 5).double(),
    }
    factors = OuterProducts(left, right, target["weight"][0].shape)
    assert factors.pays()
    update = FactoredUpdate({"weight": [factors], "bias": [bias]})
    whole = torch.cat([torch.einsum("rni,rnj->rij", left, right).flatten(1), bias], 1)
    aim = torch.cat([value.flatten(1) for value in target.values()], 1)
    expected = (
        1 - functional.cosine_similarity(whole, aim)
        if distance is cosine_distance
        else (whole - aim).square().sum(1) / aim.square().sum(1)
    )
    actual = distance(update, target)
    assert_same((actual,), (expected.detach(),))
    variables = (left, right, bias)
    assert_same(
        torch.autograd.grad(actual.sum(), variables), torch.autograd.grad(expected.sum(), variables)
    )


def test_a_small_distance_keeps_its_digits() -> None:
    """In float32 one minus a cosine would be lost below 1e-7."""
    torch.manual_seed(0)
    model = dense()
    x = torch.rand(1, 2, *SHAPE)
    target = dict(update_map(model)(x, LABELS[:1]))
    near = x + 3e-4 * torch.randn_like(x)

    def distance(network: nn.Module, at: Tensor, way: batching.Batching) -> float:
        aim = {name: value.to(at.dtype) for name, value in target.items()}
        mapping = update_map(network, batching=way)
        return float(
            mapping.value_and_grad(lambda u, *_: cosine_distance(u, aim), at, LABELS[:1])[0]
        )

    exact = distance(copy.deepcopy(model).double(), near.double(), "loop")
    assert exact < 1e-6
    assert distance(model, near, "explicit") == pytest.approx(exact, rel=1e-3)
