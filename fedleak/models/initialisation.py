"""Initial weights. Leakage depends on them, so a scenario names them.

A weight is a parameter of two or more dimensions; a bias is one whose own name begins
with ``bias``. Normalisation layers, and any other parameter, keep what the framework
gave them. All draws come from torch's global random state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fedleak.components import Component

NORMALISATION = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Init(Component, ABC):
    """A rule for initial weights."""

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Overwrite the weights and biases of ``model`` in place."""


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    """Each weight with True and each bias with False, in the order of the modules."""
    for module in model.modules():
        if isinstance(module, NORMALISATION):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2:
                yield parameter, True
            elif name.startswith("bias"):
                yield parameter, False


class DefaultInit(Init):
    """What the framework, or the model's own code, gives."""

    kind: Literal["default"] = "default"

    def apply(self, model: nn.Module) -> None:
        """Leave the model as it is."""


class UniformInit(Init):
    """Weights and biases uniform in [low, high].

    The default is the one of Deep Leakage from Gradients (Zhu et al. 2019).
    """

    kind: Literal["uniform"] = "uniform"
    low: float = Field(-0.5, ge=-1e6, le=1e6, description="lower end of the range")
    high: float = Field(0.5, ge=-1e6, le=1e6, description="upper end of the range")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        return self

    def apply(self, model: nn.Module) -> None:
        """Draw all weights and biases."""
        for parameter, _ in _parameters(model):
            nn.init.uniform_(parameter, self.low, self.high)


class NormalInit(Init):
    """Weights and biases from a normal distribution."""

    kind: Literal["normal"] = "normal"
    mean: float = Field(0.0, ge=-1e6, le=1e6, description="mean")
    std: float = Field(0.02, gt=0, le=1e6, description="standard deviation")

    def apply(self, model: nn.Module) -> None:
        """Draw all weights and biases."""
        for parameter, _ in _parameters(model):
            nn.init.normal_(parameter, self.mean, self.std)


class XavierInit(Init):
    """Weights of variance ``2 / (fan_in + fan_out)`` (Glorot and Bengio 2010), biases zero."""

    kind: Literal["xavier"] = "xavier"
    distribution: Literal["uniform", "normal"] = Field("uniform", description="shape of the draw")

    def apply(self, model: nn.Module) -> None:
        """Draw the weights, set the biases to zero."""
        draw = nn.init.xavier_uniform_ if self.distribution == "uniform" else nn.init.xavier_normal_
        for parameter, is_weight in _parameters(model):
            draw(parameter) if is_weight else nn.init.zeros_(parameter)


class KaimingInit(Init):
    """Weights of variance ``gain² / fan_in`` (He et al. 2015), biases zero."""

    kind: Literal["kaiming"] = "kaiming"
    distribution: Literal["uniform", "normal"] = Field("uniform", description="shape of the draw")
    nonlinearity: Literal["relu", "tanh", "sigmoid", "linear"] = Field(
        "relu", description="what follows the layers: gain² is 2, 25/9, 1 and 1"
    )

    def apply(self, model: nn.Module) -> None:
        """Draw the weights, set the biases to zero."""
        uniform = self.distribution == "uniform"
        draw = nn.init.kaiming_uniform_ if uniform else nn.init.kaiming_normal_
        for parameter, is_weight in _parameters(model):
            if is_weight:
                draw(parameter, nonlinearity=self.nonlinearity)
            else:
                nn.init.zeros_(parameter)
