"""A smooth network, and a client that trained it in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from fedleak.gradients import UpdateMap
from fedleak.measures import Evidence
from fedleak.records import Observation, TrainingFacts, Truth

CLASSES, SHAPE = 3, (1, 4, 4)


@pytest.fixture
def client() -> Callable[..., Evidence]:
    """Takes a model, a number of samples and training facts; nothing defends the update."""

    def make(model: nn.Module, samples: int = 1, **facts: float) -> Evidence:
        rng = np.random.default_rng(1)
        truth = Truth(rng.random((samples, *SHAPE)), rng.integers(CLASSES, size=samples))
        parameters = {name: value.detach() for name, value in model.named_parameters()}
        buffers = dict(model.named_buffers())
        told = TrainingFacts(
            **{"lr": 0.1, "steps": 1, "batch_size": 2, "examples": samples, **facts}
        )
        update = UpdateMap(model, parameters, buffers, told)(
            torch.from_numpy(truth.inputs)[None], torch.from_numpy(truth.labels)[None]
        )
        released = {name: value[0] for name, value in update.items()}
        observation = Observation(model, parameters, buffers, released, told, SHAPE, CLASSES)
        return Evidence(observation, truth, None, None, seed=0)

    return make


@pytest.fixture
def smooth_net() -> nn.Module:
    """A convolution and two dense layers, float64, for ``(1, 4, 4)`` and three classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.Tanh(),
        nn.Linear(5, CLASSES),
    ).double()
