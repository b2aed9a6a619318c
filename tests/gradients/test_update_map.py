"""The batched update map against autograd on single samples, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.gradients import Plan, UpdateMap
from fedleak.gradients import update_map as unrolled
from fedleak.records import TrainingFacts

CANDIDATES, SAMPLES, CLASSES, SHAPE = 3, 2, 4, (2, 6, 6)
EXACT = 1e-9


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.block = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.block(x)).mean((2, 3)))


class Branching(nn.Module):
    """Its control flow depends on the data, which vmap cannot transform."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(72, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).sigmoid()
        return self.head(x**3 if x.sum().item() > 0 else x)


def conv(*tail: nn.Module, **options: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3, **options), *tail, nn.Flatten(), nn.LazyLinear(CLASSES))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 8), nn.Tanh(), nn.Linear(8, CLASSES, bias=False)
    ),
    "conv": lambda: conv(nn.Sigmoid()),
    "stride and padding": lambda: conv(nn.Sigmoid(), stride=2, padding=2),
    "groups": lambda: conv(nn.Sigmoid(), groups=2),
    "dilation": lambda: conv(nn.Sigmoid(), dilation=2),
    "max pooling": lambda: conv(nn.MaxPool2d(2), nn.Softplus()),
    "average pooling": lambda: conv(nn.ReLU(inplace=True), nn.AvgPool2d(2)),
    "adaptive max pooling": lambda: conv(nn.AdaptiveMaxPool2d(2), nn.Softplus()),
    "adaptive average pooling": lambda: conv(nn.GELU(), nn.AdaptiveAvgPool2d(2)),
    "group norm": lambda: conv(nn.GroupNorm(2, 4), nn.ELU()),
    "residual": Residual,
    "batch norm": lambda: conv(nn.BatchNorm2d(4), nn.Sigmoid()),
    "instance norm": lambda: conv(nn.InstanceNorm2d(4, affine=True), nn.Sigmoid()),
    "layer norm": lambda: conv(nn.LayerNorm([4, 4, 4]), nn.Sigmoid()),
    "no vmap": Branching,
}


@pytest.fixture(params=["explicit", "vmap", "loop"])
def batching(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    if request.param == "no vmap" and request.getfixturevalue("batching") != "loop":
        pytest.skip("evaluated one by one")
    torch.manual_seed(0)
    model = NETWORKS[request.param]().double()
    model(torch.rand(SAMPLES, *SHAPE, dtype=torch.float64))
    return model


@pytest.fixture
def inputs() -> Tensor:
    return torch.rand(
        CANDIDATES, SAMPLES, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


LABELS = torch.tensor([[0, 1], [3, 3], [2, 0]])


def facts(**changes: float | bool) -> TrainingFacts:
    return TrainingFacts(
        **{"lr": 0.1, "steps": 1, "batch_size": SAMPLES, "examples": SAMPLES, **changes}
    )


def update_map(model: nn.Module, told: TrainingFacts, **options: object) -> UpdateMap:
    return UpdateMap(
        model, dict(model.named_parameters()), dict(model.named_buffers()), told, **options
    )


class PlainNorm(nn.Module):
    """Batch, instance and layer norm by their definition.

    The fused ones are wrong from the third derivative on, so they cannot be the oracle.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        if isinstance(layer, nn.GroupNorm):
            shaped = x.unflatten(1, (layer.num_groups, -1))
            dims: tuple[int, ...] = (2, 3, 4)
        else:
            shaped = x
            dims = {nn.BatchNorm2d: (0, 2, 3), nn.InstanceNorm2d: (2, 3), nn.LayerNorm: (1, 2, 3)}[
                type(layer)
            ]
        variance = shaped.var(dims, correction=0, keepdim=True)
        normal = (
            (shaped - shaped.mean(dims, keepdim=True)) / (variance + layer.eps).sqrt()
        ).reshape(x.shape)
        per_channel = layer.weight.dim() == 1
        weight, bias = (p[:, None, None] if per_channel else p for p in (layer.weight, layer.bias))
        return normal * weight + bias


def unfused(model: nn.Module) -> nn.Module:
    """A copy of the model with `PlainNorm` in place of its normalisation layers."""
    model = copy.deepcopy(model)
    kinds = (nn.BatchNorm2d, nn.InstanceNorm2d, nn.LayerNorm, nn.GroupNorm)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, kinds):
                setattr(parent, name, PlainNorm(layer))
    return model


def plain_gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """The oracle: autograd on one candidate, all parameters in one vector."""
    loss = functional.cross_entropy(model.train()(inputs), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def flat(update: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten(1) for value in update.values()], 1)


def unflat(vectors: Tensor, model: nn.Module) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    parts = vectors.split([value.numel() for value in parameters.values()], 1)
    return {
        name: part.reshape(-1, *value.shape)
        for part, (name, value) in zip(parts, parameters.items(), strict=True)
    }


def relative(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).norm() / expected.norm())


def test_value_and_first_derivatives(network: nn.Module, inputs: Tensor, batching: str) -> None:
    mapping = update_map(network, facts(), batching=batching)
    tangents = torch.randn_like(inputs)
    expected, products, pulled = [], [], []
    weights = torch.randn(CANDIDATES, sum(p.numel() for p in network.parameters())).double()
    for x, y, tangent, weight in zip(inputs, LABELS, tangents, weights, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda z, y=y: plain_gradient(network, z, y), x
        ).flatten(1)
        expected.append(plain_gradient(network, x, y).detach())
        products.append(jacobian @ tangent.flatten())
        pulled.append((weight @ jacobian).reshape(x.shape))

    value, product = mapping.jvp(inputs, LABELS, tangents)
    assert relative(flat(value), torch.stack(expected)) < EXACT
    assert relative(flat(product), torch.stack(products)) < EXACT
    value, cotangent = mapping.vjp(inputs, LABELS, unflat(weights, network))
    assert relative(flat(value), torch.stack(expected)) < EXACT
    assert relative(cotangent, torch.stack(pulled)) < EXACT


def test_second_derivatives(network: nn.Module, inputs: Tensor, batching: str) -> None:
    """Hessian-vector products of the squared norm, which need third derivatives of the loss."""
    directions = torch.randn_like(inputs)
    oracle = unfused(network)
    expected = torch.stack(
        [
            torch.autograd.functional.hvp(
                lambda z, y=y: plain_gradient(oracle, z, y).square().sum(), x, direction
            )[1]
            for x, y, direction in zip(inputs, LABELS, directions, strict=True)
        ]
    )
    mapping = update_map(network, facts(), batching=batching)
    _, actual = torch.autograd.functional.hvp(
        lambda z: flat(mapping(z, LABELS)).square().sum(), inputs, directions
    )
    assert relative(actual, expected) < EXACT


def trained(model: nn.Module, inputs: Tensor, labels: Tensor, told: TrainingFacts) -> Tensor:
    """The oracle for several steps: `torch.optim.SGD` itself."""
    model = copy.deepcopy(model).train(told.train_mode)
    origin = [value.detach().clone() for value in model.parameters()]
    sent = torch.cat([value.flatten() for value in origin])
    optimiser = torch.optim.SGD(
        model.parameters(), told.lr, told.momentum, weight_decay=told.weight_decay
    )
    order = [
        range(start, min(start + told.batch_size, told.examples))
        for start in range(0, told.examples, told.batch_size)
    ]
    for step in range(told.steps):
        batch = list(order[step % len(order)])
        optimiser.zero_grad()
        functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        for parameter, start in zip(model.parameters(), origin, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=told.proximal_mu)
        optimiser.step()
    received = torch.cat([value.detach().flatten() for value in model.parameters()])
    return (sent - received) / told.lr


@pytest.mark.parametrize("name", ["dense", "residual", "batch norm", "no vmap"])
@pytest.mark.parametrize("train_mode", [True, False])
def test_several_local_steps_match_sgd(name: str, train_mode: bool) -> None:
    """Seven steps over five samples: short batches, a second epoch, momentum, decay, FedProx."""
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    model(torch.rand(SAMPLES, *SHAPE, dtype=torch.float64))
    told = TrainingFacts(0.2, 7, 2, 5, 0.9, 0.01, proximal_mu=0.3, train_mode=train_mode)
    x = torch.rand(CANDIDATES, 5, *SHAPE, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (CANDIDATES, 5))
    tangents = torch.randn_like(x)
    value, product = update_map(model, told).jvp(x, y, tangents)

    def oracle(at: Tensor) -> Tensor:
        return torch.stack([trained(model, a, b, told) for a, b in zip(at, y, strict=True)])

    assert relative(flat(value), oracle(x)) < EXACT
    step = 1e-5
    central = (oracle(x + step * tangents) - oracle(x - step * tangents)) / (2 * step)
    assert relative(flat(product), central) < 1e-6


def test_first_derivatives_match_central_differences(
    network: nn.Module, inputs: Tensor, batching: str
) -> None:
    mapping = update_map(network, facts(), batching=batching)
    tangents = torch.randn_like(inputs)
    step = 1e-6
    ahead, behind = (
        mapping(inputs + step * tangents, LABELS),
        mapping(inputs - step * tangents, LABELS),
    )
    central = (flat(ahead) - flat(behind)) / (2 * step)
    assert relative(flat(mapping.jvp(inputs, LABELS, tangents)[1]), central) < 1e-6


def test_value_and_grad_is_the_same_in_chunks(inputs: Tensor) -> None:
    torch.manual_seed(0)
    model = NETWORKS["dense"]().double()

    def objective(update: dict[str, Tensor], x: Tensor, _: slice) -> Tensor:
        return flat(update).square().sum(1) + x.flatten(1).square().sum(1)

    whole = update_map(model, facts()).value_and_grad(objective, inputs, LABELS)
    parts = update_map(model, facts(), chunk=2).value_and_grad(objective, inputs, LABELS)
    for actual, expected in zip(parts, whole, strict=True):
        assert relative(actual, expected) < EXACT


def test_one_hot_labels_equal_class_indices(inputs: Tensor) -> None:
    torch.manual_seed(0)
    mapping = update_map(NETWORKS["dense"]().double(), facts())
    soft = functional.one_hot(LABELS, CLASSES).double()
    assert relative(flat(mapping(inputs, soft)), flat(mapping(inputs, LABELS))) < EXACT


@pytest.mark.parametrize("steps", [1, 3])
def test_layer_selection_gives_the_same_values(inputs: Tensor, steps: int) -> None:
    torch.manual_seed(0)
    model, told = NETWORKS["dense"]().double(), facts(steps=steps, momentum=0.5)
    some = update_map(model, told, layers=["1.bias", "3.weight"])(inputs, LABELS)
    every = update_map(model, told)(inputs, LABELS)
    assert list(some) == ["1.bias", "3.weight"]
    for name, value in some.items():
        assert relative(value, every[name]) < EXACT


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(ValueError, match=r"'1.bais'.*'1.bias'"):
        update_map(NETWORKS["dense"](), facts(), layers=["1.bais"])


def test_tokens_have_a_value() -> None:
    """Embedding of integer tokens, against autograd."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(30, CLASSES)).double()
    tokens = torch.randint(0, 9, (CANDIDATES, SAMPLES, 5))
    expected = torch.stack(
        [plain_gradient(model, x, y) for x, y in zip(tokens, LABELS, strict=True)]
    )
    assert relative(flat(update_map(model, facts())(tokens, LABELS)), expected.detach()) < EXACT


def test_the_model_and_its_buffers_stay_as_they_are(inputs: Tensor) -> None:
    torch.manual_seed(0)
    model = NETWORKS["batch norm"]().double()
    model(inputs[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    update_map(model, facts(steps=2))(inputs, LABELS)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_evaluation_mode_uses_the_buffers_that_were_sent(inputs: Tensor) -> None:
    torch.manual_seed(0)
    model = NETWORKS["batch norm"]().double()
    model(inputs[0])
    expected = trained(model, inputs[0], LABELS[0], facts(train_mode=False))
    blank = copy.deepcopy(model)
    blank.get_submodule("1").reset_running_stats()
    mapping = UpdateMap(
        blank, dict(model.named_parameters()), dict(model.named_buffers()), facts(train_mode=False)
    )
    assert relative(flat(mapping(inputs[:1], LABELS[:1]))[0], expected) < EXACT


def test_dropout_is_off() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(72, CLASSES))
    dropping = nn.Sequential(nn.Flatten(), nn.Linear(72, CLASSES), nn.Dropout(0.9))
    dropping.load_state_dict(plain.state_dict())
    x = torch.rand(CANDIDATES, SAMPLES, *SHAPE)
    assert torch.equal(
        flat(update_map(dropping, facts())(x, LABELS)), flat(update_map(plain, facts())(x, LABELS))
    )


def test_a_shape_that_does_not_fit_raises_and_leaves_the_map_usable(inputs: Tensor) -> None:
    torch.manual_seed(0)
    mapping = update_map(NETWORKS["dense"]().double(), facts())
    expected = flat(mapping(inputs, LABELS))
    with pytest.raises(RuntimeError, match="shape"):
        mapping(inputs[..., :-1], LABELS)
    assert torch.equal(flat(mapping(inputs, LABELS)), expected)


def test_a_frozen_parameter_has_no_update(inputs: Tensor) -> None:
    torch.manual_seed(0)
    model = NETWORKS["dense"]().double()
    model.get_parameter("1.bias").requires_grad_(False)
    told = facts(steps=2)
    update = update_map(model, told)(inputs[:1], LABELS[:1])
    assert list(update) == ["1.weight", "3.weight"]
    expected = trained(model, inputs[0], LABELS[0], told)
    kept = torch.cat([expected[: 8 * 72], expected[8 * 72 + 8 :]])
    assert relative(flat(update)[0], kept) < EXACT
    with pytest.raises(ValueError, match="frozen"):
        update_map(model, told, layers=["1.bias"])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_jacobian_comes_in_blocks_of_columns(
    name: str, inputs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unrolled, "_DIRECTIONS", 50)
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    x, y = inputs[0], LABELS[0]
    model(x)
    blocks = list(update_map(model, facts()).jacobian(x, y, sample=1))
    assert [len(flat(block)) for block in blocks] == [50, 22]
    dense = torch.autograd.functional.jacobian(lambda z: plain_gradient(model, z, y), x)
    columns = torch.cat([flat(block) for block in blocks])
    assert relative(columns, dense[:, 1].flatten(1).T) < EXACT


@pytest.mark.parametrize(
    ("batching", "steps"),
    [("explicit", 1), ("vmap", 1), ("loop", 1), ("vmap", 3), ("loop", 3), ("checkpoint", 3)],
)
def test_a_linearisation_has_the_products_of_jvp_and_vjp(
    inputs: Tensor, batching: str, steps: int
) -> None:
    torch.manual_seed(0)
    told = facts(steps=steps, momentum=0.5)
    model = NETWORKS["conv"]().double()
    model(inputs[0])  # its last layer is as large as it has to be
    mapping = update_map(model, told, batching=batching)
    # That of another kind, so that the checkpointed products have an oracle too.
    other = update_map(model, told, batching="loop")
    tangents = torch.randn_like(inputs)
    update, along = other.jvp(inputs, LABELS, tangents)
    cotangents = {name: torch.randn_like(value) for name, value in update.items()}
    line = mapping.linearise(inputs, LABELS)
    for _ in range(2):  # as often as one likes
        assert relative(flat(line.jvp(tangents)), flat(along)) < EXACT
        assert relative(line.vjp(cotangents), other.vjp(inputs, LABELS, cotangents)[1]) < EXACT
    assert relative(flat(line.update), flat(update)) < EXACT
    assert relative(flat(mapping.jvp(inputs, LABELS, tangents)[1]), flat(along)) < EXACT
    assert relative(mapping.vjp(inputs, LABELS, cotangents)[1], line.vjp(cotangents)) < EXACT


@pytest.mark.parametrize("chunk", [None, 2])
def test_gradients_in_class_probabilities(inputs: Tensor, chunk: int | None) -> None:
    """Against autograd through a plain training step of each candidate by itself."""
    torch.manual_seed(0)
    model = NETWORKS["dense"]().double()
    soft = torch.rand(*LABELS.shape, CLASSES, dtype=torch.float64).softmax(-1)

    def objective(update: dict[str, Tensor], x: Tensor, rows: slice) -> Tensor:
        return flat(update).square().sum(1) * torch.arange(len(inputs))[rows]

    _, of_inputs, of_labels = update_map(model, facts(), chunk=chunk).value_and_grads(
        objective, inputs, soft
    )
    for weight, (x, y) in enumerate(zip(inputs, soft, strict=True)):
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        loss = functional.cross_entropy(model(x), y)
        gradient = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        value = weight * sum(part.square().sum() for part in gradient)
        expected = torch.autograd.grad(value, (x, y))
        assert of_labels is not None
        torch.testing.assert_close(of_inputs[weight], expected[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(of_labels[weight], expected[1], rtol=1e-9, atol=1e-12)


def test_checkpointed_steps_are_the_same_and_hold_less(inputs: Tensor) -> None:
    """Values, and gradients in samples and class probabilities, with momentum and decay."""
    torch.manual_seed(0)
    model = NETWORKS["group norm"]().double()
    model(inputs[0])
    told = facts(steps=6, momentum=0.5, weight_decay=0.1, proximal_mu=0.2)
    soft = torch.rand(*LABELS.shape, CLASSES, dtype=torch.float64).softmax(-1)

    def objective(update: dict[str, Tensor], x: Tensor, rows: slice) -> Tensor:
        return flat(update).square().sum(1)

    made, held = {}, {}
    for way in ("loop", "checkpoint"):
        mapping = update_map(model, told, batching=way)
        made[way] = mapping.value_and_grads(objective, inputs, soft)
        plain = update_map(model, facts(steps=6), batching=way)
        held[way] = graph_size(flat(plain(inputs[:1].clone().requires_grad_(), soft[:1])))
    for ours, theirs in zip(made["checkpoint"], made["loop"], strict=True):
        assert relative(ours, theirs) < EXACT
    assert held["checkpoint"] < held["loop"] / 3


def graph_size(value: Tensor) -> int:
    """Operations behind a value."""
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [behind for behind, _ in node.next_functions]
    return len(seen)


def test_steps_are_checkpointed_where_their_graph_does_not_fit(
    inputs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = NETWORKS["dense"]().double()
    mapping = update_map(model, facts(steps=5))
    assert mapping.plan(inputs, LABELS).batching != "checkpoint"
    monkeypatch.setattr(unrolled, "PLANS", {})
    monkeypatch.setattr(unrolled, "fitting", lambda work, device: work() or 4)
    assert update_map(model, facts(steps=5)).plan(inputs, LABELS) == Plan("checkpoint", 1)
    assert update_map(model, facts(steps=4)).plan(inputs, LABELS).batching != "checkpoint"


def test_footprint_is_more_than_autograd_keeps_and_grows_with_the_steps(inputs: Tensor) -> None:
    torch.manual_seed(0)
    model = NETWORKS["dense"]().double()
    one, four = (update_map(model, facts(steps=count)) for count in (1, 4))
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    variable = inputs[:1].clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = functional.cross_entropy(model(variable[0]), LABELS[0])
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    assert 0 < kept < one.footprint(inputs, LABELS)
    assert four.footprint(inputs, LABELS) == 4 * one.footprint(inputs, LABELS)
