"""ResNet-18 from torchvision."""

from __future__ import annotations

import functools
from typing import Any, Literal

from pydantic import Field, field_validator
from torch import nn

from fedleak.models.architecture import Architecture, image_shape


class ResNet18(Architecture):
    """torchvision's ResNet-18 with random weights (He et al. 2016).

    The small-image stem replaces the 7x7 convolution of stride 2 and the max-pooling by
    one 3x3 convolution of stride 1. ReLUs and sums are not in place, so that second
    derivatives, ``vmap`` and hooks work.
    """

    kind: Literal["resnet18"] = "resnet18"
    norm: Literal["batch", "group"] = Field("batch", description="normalisation layers")
    groups: int = Field(32, ge=1, le=64, description="groups of each group norm; a divisor of 64")
    small_stem: bool | None = Field(
        None, description="small-image stem; by default where both sides are at most 64 pixels"
    )

    @field_validator("groups")
    @classmethod
    def _divides_every_layer(cls, groups: int) -> int:
        if 64 % groups:
            raise ValueError("must divide 64, the channels of the first layers")
        return groups

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Make the network for images of any size."""
        from torchvision.models import ResNet

        from fedleak.models.residual import Block

        channels, height, width = image_shape(input_shape, self.kind)
        norm: Any = (
            nn.BatchNorm2d if self.norm == "batch" else functools.partial(nn.GroupNorm, self.groups)
        )
        model: nn.Module = ResNet(Block, [2, 2, 2, 2], num_classes=classes, norm_layer=norm)
        small = max(height, width) <= 64 if self.small_stem is None else self.small_stem
        if small:
            stem = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
            model.maxpool = nn.Identity()
        else:
            stem = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        # As torchvision initialises its convolutions.
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        model.conv1 = stem
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        return model
