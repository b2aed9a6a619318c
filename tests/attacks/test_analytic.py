from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks import Analytic
from fedleak.attacks.analytic import _blends, _led
from fedleak.attacks.replay import replay, replayable
from fedleak.measures.extraction import EXACT
from fedleak.records import Observation, Setting, TrainingFacts
from fedleak.traps import set_trap, trap_rows

Observe = Callable[..., Observation]
Psnr = Callable[[Tensor, Tensor], Tensor]


class Normalise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.1307) / 0.3081


def mlp(hidden: int, *before: nn.Module) -> nn.Module:
    return nn.Sequential(
        *before, nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10)
    )


@pytest.mark.parametrize("lr", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("before", [(), (Normalise(),)], ids=["plain", "normalised"])
def test_one_sample_is_exact_up_to_float32(
    observe: Observe,
    psnr: Psnr,
    digits: tuple[Tensor, Tensor],
    lr: float,
    before: tuple[nn.Module, ...],
) -> None:
    images, labels = digits
    torch.manual_seed(0)
    for i in range(5):
        told = TrainingFacts(lr, 1, 1, 1, weight_decay=0.01)
        observation = observe(mlp(50, *before), images[i : i + 1], labels[i : i + 1], told)
        found = Analytic().reconstruct(observation, seed=0)
        assert found.labels is not None and found.labels.tolist() == [labels[i]]
        assert psnr(found.inputs, images[i : i + 1]).item() > (50 if lr == 0.01 else 70)


def test_one_sample_over_several_steps(
    observe: Observe, psnr: Psnr, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits
    torch.manual_seed(0)
    told = TrainingFacts(0.1, 5, 1, 1, momentum=0.9)
    observation = observe(mlp(50), images[:1], labels[:1], told)
    assert psnr(Analytic().reconstruct(observation, seed=0).inputs, images[:1]).item() > 70


@pytest.mark.parametrize("samples", [2, 4, 16])
def test_in_a_batch_what_is_found_is_a_sample(
    observe: Observe, digits: tuple[Tensor, Tensor], samples: int
) -> None:
    images, labels = digits
    images, labels = images[:samples], labels[:samples]
    for seed in range(5):
        torch.manual_seed(seed)
        found = Analytic().reconstruct(observe(mlp(600), images, labels), seed=0)
        errors = torch.cdist(found.inputs.flatten(1), images.flatten(1)) / 8
        assert len(found.inputs) >= 2
        assert (errors.amin(1) < 1e-3).all(), "a mixture was taken for a sample"
        assert len(set(errors.argmin(1).tolist())) == len(found.inputs), "found twice"
        assert (found.confidence >= 1).all()
        assert found.labels is not None
        assert torch.equal(found.labels, labels[errors.argmin(1)])


def test_smooth_activations_leave_only_mixtures(
    observe: Observe, digits: tuple[Tensor, Tensor]
) -> None:
    """Every sample activates every sigmoid neuron, so none can be told apart."""
    images, labels = digits
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 400), nn.Sigmoid(), nn.Linear(400, 10))
    found = Analytic().reconstruct(observe(model, images[:4], labels[:4]), seed=0)
    assert (found.confidence < 1).all()


def trap(
    hidden: int, scaling: float, sigma: float = 1e-3, outputs: int = 10, layers: int = 2
) -> nn.Module:
    """A network whose first dense layer is a trap, for 8 x 8 digits."""
    deep = [part for _ in range(layers - 1) for part in (nn.Linear(hidden, hidden), nn.ReLU())]
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), *deep, nn.Linear(hidden, outputs)
    )
    rng = np.random.default_rng(0)
    with torch.no_grad():
        model[1].weight.copy_(trap_rows(hidden, 64, scaling=scaling, sigma=sigma, rng=rng))
        model[1].bias.zero_()
    return model


def alone_somewhere(model: nn.Module, images: Tensor) -> Tensor:
    """By brute force: which samples some neuron of the first layer sees alone ``(b,)``."""
    dense = model[1]
    double = images.flatten(1).double() @ dense.weight.double().T + dense.bias.double()
    on = double > 0
    return on[:, on.sum(0) == 1].any(1)


@pytest.mark.parametrize("scaling", [0.5, 0.6, 0.7])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_every_sample_that_a_trap_isolates_is_found_and_nothing_else(
    observe: Observe, digits: tuple[Tensor, Tensor], scaling: float, layers: int
) -> None:
    images, labels = digits[0][:20], digits[1][:20]
    torch.manual_seed(0)
    model = trap(300, scaling, layers=layers)
    found = Analytic().reconstruct(observe(model, images, labels), seed=0)
    apart = (found.inputs.flatten(1)[:, None] - images.flatten(1)).abs().amax(2)
    assert (apart.amin(1) < 0.01).all(), "a mixture was taken for a sample"
    which = apart.argmin(1)
    assert len(which.unique()) == len(which), "found twice"
    isolated = alone_somewhere(model, images)
    assert set(which.tolist()) == set(isolated.nonzero()[:, 0].tolist())
    assert found.labels is not None and torch.equal(found.labels, labels[which])
    assert (found.confidence == 1).any() or layers > 1


@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "hidden"])
@pytest.mark.parametrize("dense", [None, "6"], ids=["first dense layer", "later one"])
def test_samples_pass_through_convolutions_and_are_read_without_being_told_how(
    observe: Observe, digits: tuple[Tensor, Tensor], hidden: bool, dense: str | None
) -> None:
    images, labels = digits[0][:20], digits[1][:20]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(320, 300), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 10),
    )  # fmt: skip
    if dense is None:
        model[6] = nn.ReLU()
    rng = np.random.default_rng(0)
    settings = {"scaling": 0.6, "sigma": 1e-3, "layer": dense, "hidden": hidden, "rng": rng}
    made = set_trap(model, model.state_dict(), True, (1, 8, 8), **settings)
    model.load_state_dict({**model.state_dict(), **made})
    found = Analytic().reconstruct(observe(model, images, labels), seed=0)
    apart = (found.inputs.flatten(1)[:, None] - images.flatten(1)).abs().amax(2)
    assert (apart.amin(1) < 0.01).all()
    assert len(apart.argmin(1).unique()) == len(found.inputs)
    # By brute force: which samples some neuron of the trap sees alone.
    on = copy.deepcopy(model).double()[: 7 if dense else 6](images.double()) > 0
    isolated = set(on[:, on.sum(0) == 1].any(1).nonzero()[:, 0].tolist())
    got = set(apart.argmin(1).tolist())
    assert got <= isolated and len(isolated - got) <= 1
    assert len(isolated) > 10


@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "hidden"])
def test_samples_pass_strides_and_are_read_exactly(
    observe: Observe, digits: tuple[Tensor, Tensor], hidden: bool
) -> None:
    """Each stride of two spreads the image over four channels, which are found by probing."""
    images, labels = digits[0][:20], digits[1][:20]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 7, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(7, 21, 2, stride=2),
        nn.ReLU(), nn.MaxPool2d(1), nn.Flatten(), nn.Linear(84, 300), nn.ReLU(), nn.Linear(300, 10),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    settings = {"scaling": 0.6, "sigma": 1e-3, "hidden": hidden, "rng": rng}
    made = set_trap(model, model.state_dict(), True, (1, 8, 8), **settings)
    model.load_state_dict({**model.state_dict(), **made})
    found = Analytic().reconstruct(observe(model, images, labels), seed=0)
    apart = (found.inputs.flatten(1)[:, None] - images.flatten(1)).abs().amax(2)
    assert (apart.amin(1) <= EXACT).all()
    # By brute force: which samples some neuron of the trap sees alone.
    on = copy.deepcopy(model).double()[:7](images.double()) > 0
    isolated = set(on[:, on.sum(0) == 1].any(1).nonzero()[:, 0].tolist())
    assert set(apart.argmin(1).tolist()) == isolated and len(isolated) > 10


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.5, 1.0])
def test_groups_are_those_that_one_neuron_after_the_other_would_lead(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    agree = torch.rand(60, 60, generator=generator) < share
    agree = agree | agree.T
    agree.fill_diagonal_(True)
    rank = torch.randperm(60, generator=generator)
    led, free = torch.zeros(60, 60, dtype=torch.bool), torch.ones(60, dtype=torch.bool)
    for leader in rank.argsort().tolist():
        if free[leader]:
            led[leader] = agree[leader] & free
            free &= ~agree[leader]
    assert torch.equal(_led(agree, rank), led[led.any(1)])


def test_mixtures_of_two_classes_agree_and_are_told_apart_all_the_same(
    observe: Observe, digits: tuple[Tensor, Tensor]
) -> None:
    """With two outputs every neuron that sees the same two samples mixes them alike."""
    images, labels = digits[0][:8], digits[1][:8] % 2
    torch.manual_seed(1)
    model = trap(2000, 0.85, outputs=2, layers=1)
    found = Analytic().reconstruct(observe(model, images, labels), seed=0)
    apart = (found.inputs.flatten(1)[:, None] - images.flatten(1)).abs().amax(2).amin(1)
    assert len(found.inputs) == alone_somewhere(model, images).sum()
    assert (apart < 0.01).all()


def test_a_clipped_update_gives_samples_all_the_same(
    observe: Observe, digits: tuple[Tensor, Tensor]
) -> None:
    """The replay confirms nothing then; agreement does, and lone neurons are doubtful."""
    images, labels = digits[0][:20], digits[1][:20]
    torch.manual_seed(0)
    model = trap(300, 0.6)
    observation = observe(model, images, labels)
    clipped = {name: 0.37 * value for name, value in observation.update.items()}
    found = Analytic().reconstruct(replace(observation, update=clipped), seed=0)
    apart = (found.inputs.flatten(1)[:, None] - images.flatten(1)).abs().amax(2)
    exact = apart.amin(1) < 0.01
    assert found.labels is None
    assert exact[found.confidence >= 2].double().mean() > 0.9
    assert set(apart.argmin(1)[exact].tolist()) == set(
        alone_somewhere(model, images).nonzero()[:, 0].tolist()
    )


def test_a_large_batch_is_not_replayed_whole(
    observe: Observe, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fedleak.attacks.analytic as module

    played = []

    def counted(observation: Observation, layer: str, samples: Tensor, neurons: Tensor) -> object:
        played.append(len(samples))
        return replay(observation, layer, samples, neurons)

    monkeypatch.setattr(module, "replay", counted)
    images, labels = digits[0][:200], digits[1][:200]
    torch.manual_seed(0)
    model = trap(800, 0.6)
    found = Analytic().reconstruct(observe(model, images, labels), seed=0)
    assert played == [50]
    apart = (found.inputs.flatten(1)[:, None] - images.flatten(1)).abs().amax(2)
    got = set(apart.argmin(1)[apart.amin(1) < 0.01].tolist())
    isolated = set(alone_somewhere(model, images).nonzero()[:, 0].tolist())
    assert got <= isolated and len(isolated - got) <= 1
    assert len(isolated) > 40


@pytest.mark.parametrize("bias", [True, False])
def test_a_replayed_share_is_the_gradient_of_one_sample(
    observe: Observe, digits: tuple[Tensor, Tensor], bias: bool
) -> None:
    """Against autograd on single samples, in float64."""
    images, labels = digits[0][:6], digits[1][:6]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 20, bias=bias), nn.Tanh(),
        nn.Linear(20, 10),
    )  # fmt: skip
    observation = observe(model, images, labels)
    neurons = torch.tensor([3, 7, 7, 0, 29, 12])
    alone = replay(observation, "1", images, neurons)
    double = copy.deepcopy(model).double()
    for i in range(6):
        for label in range(10):
            loss = functional.cross_entropy(
                double(images[i : i + 1].double()), torch.tensor([label])
            )
            (gradient,) = torch.autograd.grad(loss, double[1].bias)
            assert float(alone.shares[i, label]) == pytest.approx(
                float(gradient[neurons[i]]) / 6, rel=1e-4, abs=1e-8
            )


def test_what_dropout_or_several_steps_hide_is_not_replayed(
    observe: Observe, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits[0][:4], digits[1][:4]
    assert replayable(observe(mlp(9), images, labels))
    assert not replayable(observe(mlp(9), images, labels, TrainingFacts(0.1, 2, 2, 4)))
    dropped = nn.Sequential(*mlp(9), nn.Dropout(0.5))
    assert not replayable(observe(dropped, images, labels))
    off = TrainingFacts(0.1, 1, 4, 4, train_mode=False)
    assert replayable(observe(dropped, images, labels, off))


def test_a_network_that_is_not_active_gives_nothing(
    observe: Observe, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits
    model = mlp(20)
    with torch.no_grad():
        model.get_parameter("1.bias").fill_(-100)
    assert Analytic().reconstruct(observe(model, images[:1], labels[:1]), 0).inputs.shape[0] == 0


def test_only_a_sample_between_two_with_more_support_is_a_blend() -> None:
    a, b = torch.rand(2, 30, dtype=torch.float64)
    found = torch.stack([a, b, 0.3 * a + 0.7 * b, 1.3 * a - 0.3 * b, torch.rand(30).double()])
    support = torch.tensor([9, 8, 2, 2, 2])
    assert _blends(found, support, 0.01).tolist() == [False, False, True, False, False]
    assert not _blends(found, support.flip(0), 0.01)[2]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), *mlp(9)), "has none"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)), "'1' has none"),
        (nn.Sequential(nn.Flatten(), nn.Linear(63, 10)), "does not accept"),
    ],
    ids=["convolution first", "no bias", "another shape"],
)
def test_what_it_cannot_work_on_is_unsupported(model: nn.Module, reason: str) -> None:
    told = TrainingFacts(0.1, 1, 1, 1)
    answer = Analytic().unsupported(Setting(model, told, (1, 8, 8), 10))
    assert answer is not None and reason in answer
    assert Analytic().unsupported(Setting(mlp(9), told, (1, 8, 8), 10)) is None
