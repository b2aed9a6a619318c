from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks import ATTACKS, DLG, GS, IDLG, Attack, GaussNewton
from fedleak.attacks.optimisation import (
    Watch,
    smoothness,
    total_variation,
)
from fedleak.errors import AttackFailed
from fedleak.gradients import cosine_distance, squared_distance
from fedleak.records import Observation, Reconstruction, Setting, TrainingFacts

Observe = Callable[..., Observation]
Psnr = Callable[[Tensor, Tensor], Tensor]

SEARCHES = [
    kind(restarts=2, iterations=20, initialisation="uniform")
    for kind in (GS, IDLG, DLG, GaussNewton)
]


def named(attacks: list[Attack]) -> list[str]:
    return [attack.kind for attack in attacks]


@pytest.mark.parametrize("targets", [1, 2])
def test_distances_are_those_of_the_whole_vectors(targets: int) -> None:
    target = {"a": torch.randn(targets, 3, 4).double(), "b": torch.randn(targets, 5).double()}
    update = {"a": torch.randn(2, 3, 4).double(), "b": torch.randn(2, 5).double()}
    one, other = (torch.cat([u["a"].flatten(1), u["b"]], 1) for u in (update, target))
    torch.testing.assert_close(
        cosine_distance(update, target), 1 - functional.cosine_similarity(one, other)
    )
    torch.testing.assert_close(
        squared_distance(update, target), (one - other).square().sum(1) / other.square().sum(1)
    )


def test_the_cosine_distance_keeps_its_digits_in_float32() -> None:
    target = {"a": torch.tensor([[1.0, 0.0]])}
    update = {"a": torch.tensor([[3.0, 3e-5]])}
    assert cosine_distance(update, target).item() == pytest.approx(0.5e-10, rel=1e-3)


def test_total_variation() -> None:
    image = torch.tensor([[[[[0.0, 1.0], [0.5, 0.5]]]]])
    assert total_variation(image).tolist() == [pytest.approx((0.5 + 0.5) / 2 + (1 + 0) / 2)]


def test_idlg_recovers_image_and_label(
    observe: Observe, psnr: Psnr, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    for i in range(3):
        observation = observe(sigmoid_net, images[i : i + 1], labels[i : i + 1])
        found = IDLG(restarts=2, iterations=150).reconstruct(observation, seed=1)
        assert found.labels is not None and found.labels.tolist() == [labels[i]]
        assert psnr(found.inputs, images[i : i + 1]).item() > 40


def test_gs_recovers_the_image(
    observe: Observe, psnr: Psnr, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net, images[:1], labels[:1])
    found = GS(restarts=2, iterations=300).reconstruct(observation, seed=1)
    assert psnr(found.inputs, images[:1]).item() > 25
    assert found.inputs.shape == (1, 1, 8, 8)
    assert found.inputs.min() >= 0 and found.inputs.max() <= 1


@pytest.mark.parametrize("attack", SEARCHES, ids=named(SEARCHES))
def test_the_seed_fixes_the_outcome(
    attack: Attack, observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net, images[:2], labels[:2])
    first = attack.reconstruct(observation, seed=1).inputs
    assert torch.equal(first, attack.reconstruct(observation, seed=1).inputs)
    assert not torch.equal(first, attack.reconstruct(observation, seed=2).inputs)


@pytest.mark.parametrize("attack", SEARCHES, ids=named(SEARCHES))
def test_more_restarts_never_have_a_worse_objective_and_chunks_change_nothing(
    attack: Attack, observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net.double(), images[:1].double(), labels[:1])
    attack = attack.model_copy(update={"precision": "float64"})
    two = attack.reconstruct(observation, seed=1)
    eight = attack.model_copy(update={"restarts": 8}).reconstruct(observation, seed=1)
    assert eight.confidence.item() >= two.confidence.item() - 1e-12
    chunked = attack.model_copy(update={"chunk": 1}).reconstruct(observation, seed=1)
    torch.testing.assert_close(chunked.inputs, two.inputs, rtol=0, atol=1e-6)


def test_unrolling_beats_the_one_gradient_approximation(
    observe: Observe, psnr: Psnr, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    """FedAvg: two samples of different classes, four steps of one, high learning rate."""
    images, labels = digits
    told = TrainingFacts(1.0, 4, 1, 2, momentum=0.5)
    observation = observe(sigmoid_net, images[[3, 7]], labels[[3, 7]], told)
    quality = {}
    for how in ("unroll", "one-gradient"):
        attack = IDLG(restarts=4, iterations=200, local_steps=how)
        found = attack.reconstruct(observation, seed=0)
        assert found.labels is not None
        ordered = found.inputs[found.labels.argsort()]
        quality[how] = psnr(ordered, images[[3, 7]]).mean().item()
    assert quality["unroll"] > quality["one-gradient"] + 5


def test_one_gradient_of_one_step_is_the_gradient_itself(
    observe: Observe, psnr: Psnr, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    told = TrainingFacts(0.1, 1, 1, 1, weight_decay=0.01)
    observation = observe(sigmoid_net, images[:1], labels[:1], told)
    attack = IDLG(restarts=2, iterations=150, local_steps="one-gradient")
    assert psnr(attack.reconstruct(observation, seed=1).inputs, images[:1]).item() > 40


@pytest.mark.parametrize("attack", SEARCHES, ids=named(SEARCHES))
def test_a_layer_subset_never_reads_the_others(
    attack: Attack, observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net, images[:1], labels[:1])
    part = attack.model_copy(update={"layers": ("0.weight", "0.bias")})
    changed = {**observation.update, "2.weight": observation.update["2.weight"] + 1}
    first = part.reconstruct(observation, seed=1).inputs
    second = part.reconstruct(replace(observation, update=changed), seed=1).inputs
    assert torch.equal(first, second)
    reason = attack.model_copy(update={"layers": ("0.wieght",)}).unsupported(
        Setting(sigmoid_net, observation.facts, (1, 8, 8), 10)
    )
    assert reason is not None and "'0.wieght'" in reason


class Explosive(nn.Module):
    """Not finite for a bright image, so some restarts diverge and others do not."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        bright = flat.mean(1, keepdim=True) > self.limit
        return self.head(flat + torch.where(bright, torch.nan, 0.0))


@pytest.mark.parametrize("attack", SEARCHES, ids=named(SEARCHES))
def test_a_restart_that_diverges_does_so_alone(
    attack: Attack, observe: Observe, digits: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    images, labels = digits
    observation = observe(Explosive(0.5), images[:1], labels[:1])
    found = attack.model_copy(update={"restarts": 16}).reconstruct(observation, seed=0)
    assert found.inputs.isfinite().all() and found.confidence.isfinite().all()
    with pytest.raises(AttackFailed, match="diverged"):
        attack.reconstruct(replace(observation, model=Explosive(-1.0)), seed=0)


@pytest.mark.parametrize("attack", [kind() for kind in ATTACKS], ids=lambda a: a.kind)
def test_an_unusable_update_is_refused_with_its_name(
    attack: Attack, observe: Observe, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    observation = observe(model, images[:1], labels[:1])
    for broken in (torch.full((10,), torch.nan), torch.zeros(9)):
        update = {**observation.update, "1.bias": broken}
        with pytest.raises(AttackFailed, match=r"'1\.bias'"):
            attack.reconstruct(replace(observation, update=update), seed=0)
    with pytest.raises(AttackFailed, match=r"no '1\.bias'"):
        attack.reconstruct(
            replace(observation, update={"1.weight": observation.update["1.weight"]}), seed=0
        )


@pytest.mark.parametrize("attack", SEARCHES, ids=named(SEARCHES))
def test_a_zero_update_is_a_failure_not_a_picture(
    attack: Attack, observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net, images[:1], labels[:1])
    update = {name: torch.zeros_like(value) for name, value in observation.update.items()}
    with pytest.raises(AttackFailed, match="zero"):
        attack.reconstruct(replace(observation, update=update), seed=0)


@pytest.mark.parametrize("attack", SEARCHES, ids=named(SEARCHES))
def test_progress_ends_at_the_last_iteration_and_never_worsens(
    attack: Attack, observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    calls: list[tuple[int, int, float]] = []
    attack.model_copy(update={"iterations": 5}).reconstruct(
        observe(sigmoid_net, images[:1], labels[:1]), 0, lambda *now: calls.append(now)
    )
    assert calls[-1][:2] == (5, 5)
    objectives = [best for _, _, best in calls]
    assert objectives == sorted(objectives, reverse=True)


@pytest.mark.parametrize("start", ["uniform", "normal", "grey"])
def test_initialisations(
    start: str, observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net, images[:1], labels[:1])
    pixels = GS(restarts=50, initialisation=start)._prepare(observation, seed=0).start
    assert pixels.shape == (50, 1, 1, 8, 8)
    assert pixels.mean().item() == pytest.approx(0.5, abs=0.02)
    expected = {"uniform": 12**-0.5, "normal": 0.25, "grey": 0.01}[start]
    assert pixels.std().item() == pytest.approx(expected, rel=0.05)


def test_known_labels_are_used_and_missed_clearly(
    observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net, images[:2], labels[:2])
    attack = GS(restarts=1, iterations=2, labels="known")
    with pytest.raises(AttackFailed, match="the observation has none"):
        attack.reconstruct(observation, seed=0)
    with pytest.raises(AttackFailed, match="1 known labels for 2 samples"):
        attack.reconstruct(replace(observation, labels=labels[:1]), seed=0)
    granted = torch.tensor([7, 3])
    found = attack.reconstruct(replace(observation, labels=granted), seed=0)
    assert found.labels is not None and torch.equal(found.labels, granted)


@pytest.mark.parametrize("attack", SEARCHES, ids=named(SEARCHES))
def test_a_budget_too_small_for_one_iteration_is_refused(
    attack: Attack, observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net, images[:1], labels[:1])
    with pytest.raises(AttackFailed, match="too small for one iteration"):
        attack.model_copy(update={"budget": 1e-9}).reconstruct(observation, seed=0)


def test_a_budget_and_a_good_objective_end_the_search(
    observe: Observe,
    digits: tuple[Tensor, Tensor],
    sigmoid_net: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A clock of our own: a second of a busy machine may be too little for one iteration.
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 100)
    monkeypatch.setattr("fedleak.attacks.optimisation.time", clock)
    images, labels = digits
    observation = observe(sigmoid_net, images[:1], labels[:1])
    for limit in ({"budget": 0.5}, {"stop_below": 1.9}):
        calls: list[int] = []
        attack = GS(restarts=1, iterations=100_000).model_copy(update=limit)
        attack.reconstruct(observation, 0, lambda now, *_: calls.append(now))
        assert calls[-1] < 100_000


@pytest.mark.parametrize("attack", SEARCHES, ids=named(SEARCHES))
def test_the_box_holds_on_the_way(
    attack: Attack, observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net, images[:1], labels[:1])
    boxed = attack.model_copy(update={"box": True, "restarts": 4})
    search = boxed._prepare(observation, 0)
    best = boxed._optimise(search, Watch(20, None, None, None))
    assert best.inputs.min() >= 0 and best.inputs.max() <= 1
    assert (best.objective < 1).all()


def test_dlg_returns_the_optimised_label(
    observe: Observe, psnr: Psnr, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net, images[3:4], labels[3:4])
    found = DLG(restarts=2, iterations=300).reconstruct(observation, seed=1)
    assert found.labels is not None and torch.equal(found.labels, labels[3:4])
    assert psnr(found.inputs, images[3:4]).item() > 30


def test_gauss_newton_is_exact_to_the_wire(
    observe: Observe, psnr: Psnr, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    for i in range(3):
        observation = observe(sigmoid_net, images[i : i + 1], labels[i : i + 1])
        found = GaussNewton(iterations=20).reconstruct(observation, seed=1)
        assert psnr(found.inputs, images[i : i + 1]).item() > 50


def test_gauss_newton_in_float64_is_exact_to_rounding(
    observe: Observe, psnr: Psnr, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net.double(), images[:1].double(), labels[:1])
    attack = GaussNewton(iterations=40, precision="float64")
    found = attack.reconstruct(observation, seed=1)
    assert psnr(found.inputs, images[:1]).item() > 200
    in_float32 = attack.model_copy(update={"precision": "float32"})
    assert psnr(in_float32.reconstruct(observation, seed=1).inputs, images[:1]).item() < 200


def test_gauss_newton_ends_when_it_gains_no_more(
    observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net, images[:1], labels[:1])
    calls: list[tuple[int, int, float]] = []
    attack = GaussNewton(iterations=1000, restarts=2)
    attack.reconstruct(observation, 0, lambda *now: calls.append(now))
    iteration, iterations, objective = calls[-1]
    assert iterations == 1000 and iteration < 100
    assert objective < 1e-11


def test_total_variation_beside_the_distance_and_in_parts_of_it() -> None:
    images = torch.tensor([[[[[0.0, 1.0], [0.5, 0.5]]]]])
    distance = torch.tensor([0.25])
    prior = smoothness(0.1, 2.0, images)
    assert prior is not None
    assert prior(distance, images).tolist() == [pytest.approx(0.25 * (1 + 2 * 1.0) + 0.1 * 1.0)]
    assert smoothness(0.0, 0.0, images) is None
    assert smoothness(0.1, 2.0, images.flatten(2)) is None


def test_colour_is_weighed_beside_brightness() -> None:
    """An edge of grey costs what it did; one of opponent colours as many times more."""
    grey, red_green = torch.zeros(2, 1, 1, 3, 2, 2).double()
    grey[..., 0] = 1
    red_green[..., 0, :, 0], red_green[..., 1, :, 0] = 1, -1
    distance = torch.zeros(1).double()
    plain, weighed = (smoothness(1.0, 0.0, grey, colour) for colour in (1.0, 5.0))
    assert plain is not None and weighed is not None
    # One axis of length sqrt(3) in place of three channels of 1; likewise sqrt(2) of two.
    assert weighed(distance, grey).item() == pytest.approx(1 / 3**0.5)
    assert weighed(distance, red_green).item() == pytest.approx(5 * 2**0.5 / 3)
    assert plain(distance, grey).item() == pytest.approx(1)
    assert smoothness(1.0, 0.0, grey[:, :, :1], 5.0)(distance, grey[:, :, :1]) == 1


def test_the_optimisers_descend(observe: Observe, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    observation = observe(model, images[:1], labels[:1])
    for optimiser, lr in (("signed-adam", 0.1), ("adam", 0.1), ("sgd", 10.0)):
        attack = GS(restarts=1, iterations=80, relative_tv=0.0, optimiser=optimiser, lr=lr)
        assert -attack.reconstruct(observation, seed=0).confidence.item() < 1e-3, optimiser


@pytest.mark.parametrize(
    "attack", [IDLG(iterations=60), GS(iterations=60, relative_tv=0.0)], ids=["idlg", "gs"]
)
def test_a_weight_of_the_total_variation_smooths(
    attack: Attack, observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net, images[:1], labels[:1])
    rough = attack.reconstruct(observation, seed=1).inputs
    smooth = attack.model_copy(update={"tv": 1.0}).reconstruct(observation, seed=1).inputs
    assert total_variation(smooth).item() < total_variation(rough).item() / 2


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_relative_total_variation_suits_any_scale_of_the_distance(
    scale: float, observe: Observe, psnr: Psnr, digits: tuple[Tensor, Tensor]
) -> None:
    """Small weights make all gradients alike: distances of 1e-6 in the place of 1e-1."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(512, 10)
    )
    with torch.no_grad():
        model[0].weight.mul_(scale)
    images, labels = digits
    observation = observe(model.double(), images[:1].double(), labels[:1])
    attack = GS(restarts=1, iterations=300, precision="float64")
    assert psnr(attack.reconstruct(observation, seed=1).inputs, images[:1]).item() > 25


def test_the_schedules_of_adam() -> None:
    def rates(schedule: str) -> list[float]:
        attack = GS(lr=0.4, iterations=16, schedule=schedule)
        optimiser = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=attack.lr)
        decay = attack._decay(optimiser)
        seen = []
        for _ in range(attack.iterations):
            seen.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            decay.step()
        return seen

    assert rates("constant") == [0.4] * 16
    steps = [0.4] * 6 + [0.04] * 4 + [0.004] * 4 + [0.0004] * 2
    assert rates("step") == pytest.approx(steps)
    cosine = [0.2 * (1 + math.cos(math.pi * i / 16)) for i in range(16)]
    assert rates("cosine") == pytest.approx(cosine)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_gs_by_plain_adam(
    schedule: str,
    observe: Observe,
    psnr: Psnr,
    digits: tuple[Tensor, Tensor],
    sigmoid_net: nn.Module,
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net, images[:1], labels[:1])
    attack = GS(restarts=2, iterations=300, optimiser="adam", schedule=schedule)
    found = attack.reconstruct(observation, seed=1)
    assert psnr(found.inputs, images[:1]).item() > 20
    signed = attack.model_copy(update={"optimiser": "signed-adam"})
    assert not torch.equal(signed.reconstruct(observation, seed=1).inputs, found.inputs)


def test_a_warm_start_only_moves_the_start(
    observe: Observe, psnr: Psnr, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net, images[:1], labels[:1])
    calls: list[int] = []
    attack = GaussNewton(iterations=8, warm_start=30)
    found = attack.reconstruct(observation, 1, lambda now, *_: calls.append(now))
    assert calls[-1] == 8
    assert psnr(found.inputs, images[:1]).item() > 45


@pytest.mark.parametrize("attack", SEARCHES, ids=named(SEARCHES))
def test_observations_attacked_together_are_as_if_alone(
    attack: Attack, observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    """Some of one model, one of another, one of another size, one unusable."""
    images, labels = digits
    attack = attack.model_copy(update={"precision": "float64"})
    other = copy.deepcopy(sigmoid_net)
    nn.init.normal_(other[0].weight)
    observations = [
        observe(sigmoid_net, images[0:1], labels[0:1]),
        observe(other, images[1:2], labels[1:2]),
        observe(sigmoid_net, images[2:3], labels[2:3]),
        observe(sigmoid_net, images[3:5], labels[3:5]),
        observe(sigmoid_net, images[5:6], labels[5:6]),
    ]
    zero = {name: torch.zeros_like(value) for name, value in observations[4].update.items()}
    observations[4] = replace(observations[4], update=zero)
    seeds = [3, 1, 4, 1, 5]
    portions = list(attack.reconstruct_each(observations, seeds))
    assert {frozenset(portion) for portion in portions} == {
        frozenset(indices) for indices in ({0, 2}, {1}, {3}, {4})
    }
    found = {index: made for portion in portions for index, made in portion.items()}
    assert isinstance(found[4], AttackFailed)
    for index in range(4):
        alone = attack.reconstruct(observations[index], seeds[index])
        together = found[index]
        assert isinstance(together, Reconstruction)
        torch.testing.assert_close(together.inputs, alone.inputs, rtol=0, atol=1e-6)
        torch.testing.assert_close(together.confidence, alone.confidence, rtol=1e-6, atol=1e-12)


def test_a_chunk_bounds_how_many_observations_go_together(
    observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    images, labels = digits
    observations = [observe(sigmoid_net, images[i : i + 1], labels[i : i + 1]) for i in range(3)]
    portions = GS(restarts=2, iterations=2, chunk=4).reconstruct_each(observations, [0, 0, 0])
    assert [len(portion) for portion in portions] == [2, 1]
    alone = GS(restarts=2, iterations=2, budget=60).reconstruct_each(observations, [0, 0, 0])
    assert [len(portion) for portion in alone] == [1, 1, 1]


def test_samples_to_start_from_can_be_given(
    observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module, tmp_path: Path
) -> None:
    images, labels = digits
    observation = observe(sigmoid_net, images[:1], labels[:1])
    file = tmp_path / "cell.safetensors"
    found = {"inputs": images[:1].clone(), "confidence": torch.zeros(1)}
    safetensors.torch.save_file(found, file)
    attack = GS(restarts=50, initialisation=file)
    start = attack._prepare(observation, seed=0).start
    assert torch.equal(start[0], images[:1])
    assert (start[1:] - images[:1]).std().item() == pytest.approx(0.1, rel=0.05)
    told = (sigmoid_net, observation.facts, (1, 8, 8), 10)
    assert attack.unsupported(Setting(*told)) is None
    wrong = GS(initialisation=tmp_path / "unifrom")
    assert "unifrom' is neither uniform" in (wrong.unsupported(Setting(*told)) or "")
    with pytest.raises(AttackFailed, match=r"samples of shape \(1, 1, 8, 8\).*\(2, 1, 8, 8\)"):
        attack.reconstruct(observe(sigmoid_net, images[:2], labels[:2]), seed=0)
    safetensors.torch.save_file({"inputs": images[:1].clone(), "labels": labels[:1]}, file)
    with pytest.raises(AttackFailed, match="attacks never see clients' samples"):
        attack.reconstruct(observation, seed=0)
