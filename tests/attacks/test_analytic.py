from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks import Analytic
from fedleak.attacks.analytic import _blends
from fedleak.records import Observation, TrainingFacts

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
        assert (found.confidence >= 2).all()


def test_smooth_activations_leave_only_mixtures(
    observe: Observe, digits: tuple[Tensor, Tensor]
) -> None:
    """Every sample activates every sigmoid neuron, so none can be told apart."""
    images, labels = digits
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 400), nn.Sigmoid(), nn.Linear(400, 10))
    found = Analytic().reconstruct(observe(model, images[:4], labels[:4]), seed=0)
    assert len(found.inputs) == 0


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
    answer = Analytic().unsupported(model, told, (1, 8, 8), 10)
    assert answer is not None and reason in answer
    assert Analytic().unsupported(mlp(9), told, (1, 8, 8), 10) is None
