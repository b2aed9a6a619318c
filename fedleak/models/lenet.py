"""LeNet in the two forms that the leakage literature uses."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from pydantic import Field
from torch import nn

from fedleak.errors import Problem, ScenarioError
from fedleak.models.architecture import Architecture, image_shape


class LeNetDlg(Architecture):
    """The LeNet of Deep Leakage from Gradients (Zhu et al. 2019, section 4).

    Three 5x5 convolutions of 12 channels with padding 2 and strides 2, 2, 1, a sigmoid
    after each, then one dense layer. Smooth and without pooling, so that the second
    derivatives which gradient matching needs exist everywhere.
    """

    kind: Literal["lenet-dlg"] = "lenet-dlg"

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Make the network for images of any size.

        A stride of 2 halves a side, rounding up: 28 -> 14 -> 7.
        """
        channels, height, width = image_shape(input_shape, self.kind)
        features = 12 * -(-height // 4) * -(-width // 4)
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 12, kernel_size=5, stride=2, padding=2),
                act1=nn.Sigmoid(),
                conv2=nn.Conv2d(12, 12, kernel_size=5, stride=2, padding=2),
                act2=nn.Sigmoid(),
                conv3=nn.Conv2d(12, 12, kernel_size=5, stride=1, padding=2),
                act3=nn.Sigmoid(),
                flatten=nn.Flatten(),
                fc1=nn.Linear(features, classes),
            )
        )


class LeNet(Architecture):
    """C6(5)-P(2)-C16(5)-P(2)-F120-F84-O with ReLU (Mo et al., Table III).

    The convolutions have no padding, whatever the input: a side shrinks from 28 to
    24, 12, 8 and 4, or from 32 to 28, 14, 10 and 5. Sides below 16 leave nothing.
    """

    kind: Literal["lenet"] = "lenet"
    pooling: Literal["max", "average"] = Field("max", description="kind of both 2x2 poolings")

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Make the network for images of at least 16x16 pixels."""
        channels, height, width = image_shape(input_shape, self.kind)
        if min(height, width) < 16:
            message = (
                f"'lenet' needs images of at least 16x16 pixels, the data has {height}x{width}; "
                "'lenet-dlg' and 'mlp' take any size."
            )
            raise ScenarioError(Problem("model.kind", message))
        pool = nn.MaxPool2d if self.pooling == "max" else nn.AvgPool2d
        rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 6, kernel_size=5),
                act1=nn.ReLU(),
                pool1=pool(2),
                conv2=nn.Conv2d(6, 16, kernel_size=5),
                act2=nn.ReLU(),
                pool2=pool(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(16 * rows * columns, 120),
                act3=nn.ReLU(),
                fc2=nn.Linear(120, 84),
                act4=nn.ReLU(),
                fc3=nn.Linear(84, classes),
            )
        )
