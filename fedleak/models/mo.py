"""The networks of Mo et al., Quantifying and Localizing Usable Information Leakage, Table III.

The table's LeNet is `fedleak.models.lenet`. Its notation gives no padding and no stride, so
convolutions lose their borders, and the dense layers are as large as what is left.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from fedleak.errors import Problem, ScenarioError
from fedleak.models.architecture import Architecture, image_shape, text_length
from fedleak.models.mlp import dense_layers

Block = Sequence[tuple[int, int]]
"""Filters and side of each convolution before a pooling."""


def _convolutional(
    channels: int,
    height: int,
    width: int,
    blocks: Sequence[Block],
    hidden: tuple[int, ...],
    classes: int,
    kind: str,
) -> OrderedDict[str, nn.Module]:
    """Convolutions with ReLU, a 2x2 max-pooling after each block, dense layers with ReLU.

    Raises:
        ScenarioError: Nothing is left of such inputs.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    rows, columns, number = height, width, 0
    for place, block in enumerate(blocks, start=1):
        for filters, side in block:
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(channels, filters, kernel_size=side)
            layers[f"conv_act{number}"] = nn.ReLU()
            channels, rows, columns = filters, rows - side + 1, columns - side + 1
        layers[f"pool{place}"] = nn.MaxPool2d(2)
        rows, columns = rows // 2, columns // 2
    if min(rows, columns) < 1:
        message = f"nothing is left of {height}x{width} after the convolutions of {kind!r}; "
        raise ScenarioError(Problem("model.kind", message + "'lenet' takes 16x16, 'mlp' any size."))
    return layers | dense_layers(channels * rows * columns, hidden, classes)


class AlexNet(Architecture):
    """C8(5)-C16(3)-P(2)-C32(3)x3-P(2)-F120-F84-O with ReLU (Mo et al., Table III).

    As deep as the AlexNet of 2012 and far smaller. Takes images of 22x22 pixels or more.
    """

    kind: Literal["alexnet"] = "alexnet"

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Make the network; 32x32 images leave 3x3 of the last convolution."""
        blocks = ((8, 5), (16, 3)), ((32, 3),) * 3
        shape = image_shape(input_shape, self.kind)
        return nn.Sequential(_convolutional(*shape, blocks, (120, 84), classes, self.kind))


class VGG9(Architecture):
    """C8(3)-C16(3)x2-P(2)-C32(3)x3-P(2)-F256-F128-O with ReLU (Mo et al., Table III).

    Takes images of 22x22 pixels or more.
    """

    kind: Literal["vgg9"] = "vgg9"

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Make the network; 32x32 images leave 3x3 of the last convolution."""
        blocks = ((8, 3), (16, 3), (16, 3)), ((32, 3),) * 3
        shape = image_shape(input_shape, self.kind)
        return nn.Sequential(_convolutional(*shape, blocks, (256, 128), classes, self.kind))


class _OneChannel(nn.Module):
    """Embedded texts ``(b, length, dimension)`` as images of one channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1)


class TextClf(Architecture):
    """C16(3)-P(2)-C16(8)-P(2)-F50-O with ReLU on embedded texts (Mo et al., Table III).

    The table's convolutions are two-dimensional: they go over the matrix that has one row
    for each token, its embedding. How long an embedding is, the table does not say.
    """

    kind: Literal["textclf"] = "textclf"
    tokens: int = Field(
        10_000, ge=2, le=10_000_000, description="tokens there are, at least those of the data"
    )
    dimension: int = Field(32, ge=20, le=10_000, description="size of a token's embedding")

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Make the network for texts of 20 tokens or more.

        Raises:
            ScenarioError: The samples are not texts, or are shorter.
        """
        length = text_length(input_shape, self.kind)
        blocks = ((16, 3),), ((16, 8),)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            embedding=nn.Embedding(self.tokens, self.dimension), as_image=_OneChannel()
        )
        layers |= _convolutional(1, length, self.dimension, blocks, (50,), classes, self.kind)
        return nn.Sequential(layers)
