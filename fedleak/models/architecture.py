"""What every model is: layers for given data, and input normalisation."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from pydantic import Field, FiniteFloat
from torch import nn

from fedleak.components import Component
from fedleak.errors import Problem, ScenarioError


class Architecture(Component, ABC):
    """A model: its fields are its hyperparameters, `build` makes the network.

    Inputs are pixels in [0, 1]. Where ``mean`` or ``std`` is given, the model normalises
    them itself, so attacks and scores stay in pixel space.
    """

    mean: tuple[FiniteFloat, ...] | None = Field(
        None, description="per channel, subtracted from the pixels; 0 by default"
    )
    std: tuple[FiniteFloat, ...] | None = Field(
        None, description="per channel, divides the pixels after that; 1 by default"
    )

    @abstractmethod
    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Make the network, without normalisation, from torch's global random state.

        Args:
            input_shape: Shape of one sample.
            classes: Number of outputs.

        Raises:
            ScenarioError: The network does not exist for this shape.
        """

    def normalisation(self, input_shape: tuple[int, ...]) -> Normalise | None:
        """The normalising layer for such samples, or None if no values are given.

        Raises:
            ScenarioError: Not one value per channel, or one that is not usable.
        """
        if self.mean is None and self.std is None:
            return None
        channels = input_shape[0]
        mean = self.mean if self.mean is not None else (0.0,) * channels
        std = self.std if self.std is not None else (1.0,) * channels
        problems = [
            Problem(
                f"model.{name}", f"{len(values)} value(s), but the data has {channels} channels."
            )
            for name, values in (("mean", mean), ("std", std))
            if len(values) != channels
        ]
        if any(value <= 0 for value in std):
            problems.append(Problem("model.std", f"must be above 0, got {list(std)}."))
        if problems:
            raise ScenarioError(problems)
        return Normalise(mean, std)


class Normalise(nn.Module):
    """``(x - mean) / std`` per channel, for ``x`` of shape ``(b, C, ...)``.

    The values are constants, neither parameters nor buffers: they are part of the
    architecture and never travel.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean = mean
        self.std = std

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (-1,) + (1,) * (x.ndim - 2)
        mean, std = (x.new_tensor(values).view(shape) for values in (self.mean, self.std))
        return (x - mean) / std

    def extra_repr(self) -> str:
        return f"mean={self.mean}, std={self.std}"


def image_shape(input_shape: tuple[int, ...], kind: str) -> tuple[int, int, int]:
    """``(C, H, W)``, for models that need images.

    Raises:
        ScenarioError: The samples are not images.
    """
    if len(input_shape) != 3:
        message = (
            f"{kind!r} needs images (C, H, W); the data's samples have shape {input_shape}. "
            "Texts go into 'boenisch-text', other vectors into 'mlp'."
        )
        raise ScenarioError(Problem("model.kind", message))
    channels, height, width = input_shape
    return channels, height, width


def text_length(input_shape: tuple[int, ...], kind: str) -> int:
    """Tokens of a text, for models that need texts.

    Raises:
        ScenarioError: The samples are not texts.
    """
    if len(input_shape) != 1:
        message = f"{kind!r} needs texts (length,); the data has samples {input_shape}."
        raise ScenarioError(Problem("model.kind", message))
    return input_shape[0]
