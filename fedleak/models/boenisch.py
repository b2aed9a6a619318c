"""The networks of Boenisch et al., When the Curious Abandon Honesty, Table 7."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal

from pydantic import Field
from torch import nn

from fedleak.models.architecture import Architecture, image_shape
from fedleak.models.mlp import Width, dense_layers


class BoenischFc(Architecture):
    """The fully connected network: dense layers with ReLU on the flattened image."""

    kind: Literal["boenisch-fc"] = "boenisch-fc"
    widths: tuple[Width, ...] = Field(
        (1000, 3000, 3000, 2000, 1000),
        min_length=1,
        max_length=100,
        description="neurons of each hidden layer",
    )

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Make the network for samples of any shape."""
        return nn.Sequential(dense_layers(math.prod(input_shape), self.widths, classes))


class BoenischCnn(Architecture):
    """The VGG-inspired network: 3x3 convolutions that keep the size, then dense layers.

    With the table's widths the first dense layer alone has 512 million weights on 32x32
    images (2 GB).
    """

    kind: Literal["boenisch-cnn"] = "boenisch-cnn"
    channels: tuple[Width, ...] = Field(
        (128, 256, 512), min_length=1, max_length=100, description="filters of each convolution"
    )
    width: Width = Field(1000, description="neurons of the dense hidden layer")

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Make the network for images of any size."""
        channels, height, width = image_shape(input_shape, self.kind)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, filters in enumerate(self.channels, start=1):
            layers[f"conv{number}"] = nn.Conv2d(channels, filters, kernel_size=3, padding=1)
            layers[f"conv_act{number}"] = nn.ReLU()
            channels = filters
        layers |= dense_layers(channels * height * width, (self.width,), classes)
        return nn.Sequential(layers)
