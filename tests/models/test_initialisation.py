from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import nn

from fedleak.models.initialisation import (
    DefaultInit,
    Init,
    KaimingInit,
    NormalInit,
    UniformInit,
    XavierInit,
)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(6, 16, 5),
        nn.BatchNorm2d(16),
        nn.GroupNorm(4, 16),
        nn.PReLU(3),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.LayerNorm(120),
        nn.RMSNorm(120),
        nn.Linear(120, 2000),
    )


def uniform(half_width: float) -> stats.rv_continuous:
    return stats.uniform(-half_width, 2 * half_width)


# fan_in and fan_out are 6*25 and 16*25 of the convolution, 400 and 120 of the dense layer.
@pytest.mark.parametrize(
    ("init", "convolution", "dense"),
    [
        (UniformInit(), uniform(0.5), uniform(0.5)),
        (UniformInit(low=-1, high=3), stats.uniform(-1, 4), stats.uniform(-1, 4)),
        (NormalInit(mean=1, std=0.5), stats.norm(1, 0.5), stats.norm(1, 0.5)),
        (XavierInit(), uniform((6 / 550) ** 0.5), uniform((6 / 520) ** 0.5)),
        (
            XavierInit(distribution="normal"),
            stats.norm(0, (2 / 550) ** 0.5),
            stats.norm(0, (2 / 520) ** 0.5),
        ),
        (KaimingInit(), uniform((6 / 150) ** 0.5), uniform((6 / 400) ** 0.5)),
        (
            KaimingInit(distribution="normal", nonlinearity="tanh"),
            stats.norm(0, 5 / 3 / 150**0.5),
            stats.norm(0, 5 / 3 / 400**0.5),
        ),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_weights_follow_the_distribution(
    init: Init, convolution: stats.rv_continuous, dense: stats.rv_continuous
) -> None:
    torch.manual_seed(0)
    model = network()
    init.apply(model)
    for layer, expected in ((model[0], convolution), (model[5], dense)):
        drawn = layer.weight.detach().numpy().ravel()
        # Kolmogorov-Smirnov: D exceeds 2 / sqrt(n) with probability 2 exp(-8) = 0.0007,
        # here 0.041 and 0.009. A scale wrong by 20 % gives 0.044 or more.
        assert stats.kstest(drawn, expected.cdf).statistic < 2 / np.sqrt(drawn.size)


@pytest.mark.parametrize("init", [UniformInit(), NormalInit(mean=1, std=0.5)])
def test_biases_are_drawn_too(init: Init) -> None:
    torch.manual_seed(0)
    model = network()
    init.apply(model)
    bias = model[8].bias.detach().numpy()
    expected = uniform(0.5) if isinstance(init, UniformInit) else stats.norm(1, 0.5)
    assert stats.kstest(bias, expected.cdf).statistic < 2 / np.sqrt(bias.size)


@pytest.mark.parametrize("init", [XavierInit(), KaimingInit()])
def test_biases_are_zero(init: Init) -> None:
    model = network()
    init.apply(model)
    assert all(not model[layer].bias.any() for layer in (0, 5, 8))


@pytest.mark.parametrize("init", [UniformInit(), NormalInit(), XavierInit(), KaimingInit()])
def test_normalisation_and_activations_are_left_alone(init: Init) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    init.apply(model)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{layer}.{kind}" for layer in (0, 5, 8) for kind in ("weight", "bias")}


def test_default_changes_nothing() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    DefaultInit().apply(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("init", "values"),
    [
        (UniformInit, {"low": 1, "high": 1}),
        (UniformInit, {"low": float("nan")}),
        (NormalInit, {"std": 0}),
        (KaimingInit, {"nonlinearity": "swish"}),
    ],
)
def test_bad_fields(init: type[Init], values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        init(**values)
