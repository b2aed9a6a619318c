"""The multilayer perceptron."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from fedleak.models.architecture import Architecture

Activation = Literal["relu", "sigmoid", "tanh", "elu", "gelu", "softplus"]
Width = Annotated[int, Field(ge=1, le=1_000_000)]

ACTIVATIONS: Mapping[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
}


def dense_layers(
    features: int, hidden: tuple[int, ...], classes: int, activation: Activation = "relu"
) -> OrderedDict[str, nn.Module]:
    """``flatten, fc1, act1, fc2, ...``: hidden layers with activation, then the outputs."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, width in enumerate(hidden, start=1):
        layers[f"fc{number}"] = nn.Linear(features, width)
        layers[f"act{number}"] = ACTIVATIONS[activation]()
        features = width
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(features, classes)
    return layers


class Mlp(Architecture):
    """Dense layers on the flattened input; with no hidden layer, logistic regression."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Width, ...] = Field(
        (128,), max_length=100, description="neurons of each hidden layer"
    )
    activation: Activation = Field("relu", description="after each hidden layer")

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Make the network for samples of any shape."""
        features = math.prod(input_shape)
        return nn.Sequential(dense_layers(features, self.hidden, classes, self.activation))
