"""Noise in one direction, and what it does to a perfect attacker."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from clients.defenses import EigenNoise
from clients.local_round import local_round
from fedleak.records import Dataset, Setting, TrainingFacts

SCALE = 0.01


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(64, 5))


def jacobian(model: nn.Module, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """``(pixels, parameters)`` by autograd, float64."""
    model = copy.deepcopy(model).double()

    def gradient(at: torch.Tensor) -> torch.Tensor:
        loss = cross_entropy(model(at), label)
        slopes = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        return torch.cat([slope.flatten() for slope in slopes])

    return torch.autograd.functional.jacobian(gradient, image.double()).flatten(1).T


@pytest.mark.parametrize("place", [0.0, 0.4, 1.0])
def test_it_moves_the_attacker_by_its_inverse_eigenvalue(model, turn, place):
    data = Dataset(np.random.default_rng(0).random((1, 1, 6, 6), np.float32), np.array([3]), 5)
    slopes = jacobian(model, torch.from_numpy(data.inputs), torch.from_numpy(data.labels))
    singular = torch.linalg.svdvals(slopes)

    def released(*defenses):
        trained = copy.deepcopy(model)
        told = turn(steps=1, batch_size=1, examples=1, lr=1.0)
        metrics = local_round(trained, data, [np.arange(1)], defenses, told, torch.device("cpu"))
        sent = torch.cat([weight.detach().flatten() for weight in model.parameters()])
        got = torch.cat([weight.detach().flatten() for weight in trained.parameters()])
        return (sent - got).double(), metrics

    (plain, _), (noisy, metrics) = released(), released(EigenNoise(place=place, scale=SCALE))
    noise = noisy - plain
    assert float(noise.norm()) == pytest.approx(SCALE, rel=1e-3)
    singular = singular[round(place * (len(singular) - 1))]
    moved = torch.linalg.solve(slopes @ slopes.T, slopes @ noise)
    assert float(moved.norm()) == pytest.approx(SCALE / float(singular), rel=1e-2)
    assert metrics["eigen-noise/eigenvalue"] == pytest.approx(float(singular) ** 2, rel=1e-3)
    assert metrics["eigen-noise/error"] == pytest.approx(SCALE / float(singular), rel=1e-3)


@pytest.mark.parametrize(
    ("shape", "facts", "reason"),
    [
        ((20,), {}, "no images"),
        ((1, 28, 28), {"steps": 2}, "one local step, not for 2"),
        ((3, 32, 32), {"batch_size": 2}, "6144 values, more than the 4096"),
    ],
)
def test_what_it_cannot_take_apart_is_unsupported(model, shape, facts, reason):
    told = TrainingFacts(**{"lr": 0.1, "steps": 1, "batch_size": 1, "examples": 9, **facts})
    assert reason in EigenNoise().unsupported(Setting(model, told, shape, 10))
    told = TrainingFacts(0.1, 1, 1, 9)
    assert EigenNoise().unsupported(Setting(model, told, (3, 32, 32), 10)) is None
