"""Weights with which a layer hands the sample on unaltered."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fedleak.attacks.structure import Carried


class NotPassed(Exception):
    """A layer cannot hand the sample on; says why, as the end of a sentence."""


def pass_through_convolution(
    layer: nn.Conv2d,
    sent: tuple[Tensor, Tensor | None],
    given: Tensor,
    carried: Carried,
    *,
    last: bool,
    hidden: bool,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor | None]:
    """Filters of Boenisch et al., §7: each copies one channel, shifted by its one weight.

    A filter whose weight stands in the middle copies a channel as it is where stride is
    one and padding keeps the size. With a stride, or without padding, several filters
    with the weight at different places take over a channel together: as many as it takes
    for each pixel to be seen by one. Copies go to channels at random.

    Args:
        layer: The convolution.
        sent: Its weight and bias otherwise.
        given: ``(n, C, H, W)``, what it is given for spelling samples.
        carried: Where in one such input, flattened, the pixels are.
        last: Whether it is the last one before the dense layers: then the other filters
            are made negative, so that ReLU silences them. Else they stay as they are.
        hidden: Whether a copy is scaled at random instead of by one.
        rng: Source of the draws.

    Returns:
        Weight and bias.

    Raises:
        NotPassed: It has too few filters, or never sees some pixels.
    """
    height, width = given.shape[2:]
    used = torch.unique(carried.carrier // (height * width)).tolist()
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    weight, bias = (None if tensor is None else tensor.clone() for tensor in sent)
    assert weight is not None
    places = [
        _cover(side, kernel[axis], stride[axis], dilation[axis], *_padding(layer, axis))
        for axis, side in enumerate((height, width))
    ]
    copies = [(row, column) for row in places[0] for column in places[1]]
    free = _free_filters(layer, used, len(copies), rng)
    rest = torch.ones(len(weight), dtype=torch.bool)
    low = given.amin((0, 2, 3))
    for channel in used:
        for row, column in copies:
            filter = free[channel].pop()
            rest[filter] = False
            scale = float(rng.uniform(0.5, 1.5)) if hidden else 1.0
            weight[filter] = 0.0
            weight[filter, channel % weight.shape[1], row, column] = scale
            # ReLU must not cut off what a normalisation made negative.
            lift = max(0.0, -scale * float(low[channel]))
            if bias is not None:
                bias[filter] = lift
            elif lift > 0:
                raise NotPassed(
                    "has no bias that would keep the normalised sample from being negative"
                )
    if last:
        weight[rest] = -weight[rest].abs()
        if bias is not None:
            bias[rest] = -bias[rest].abs()
    return weight, bias


def pass_through_dense(
    sent: tuple[Tensor, Tensor | None],
    given: Tensor,
    carried: Carried,
    *,
    hidden: bool,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor | None]:
    """Weights of Boenisch et al., App. B: one neuron hands on one pixel.

    Plain, pixels go to the first neurons in order, with weight one, and all other weights
    are zero. Hidden, they go to neurons at random and with a positive weight at random;
    the other neurons weigh the pixels negatively, so that ReLU silences them; and what
    silent features weigh is left as it was.

    Args:
        sent: Weight and bias of the layer otherwise.
        given: ``(n, features)``, what it is given for spelling samples.
        carried: Where in one such input the pixels are.
        hidden: Which of the two.
        rng: Source of the draws.

    Returns:
        Weight and bias.

    Raises:
        NotPassed: There are more pixels than neurons.
    """
    if given.dim() != 2:
        raise NotPassed(f"is applied at several places at once, to inputs {tuple(given.shape[1:])}")
    weight, bias = sent
    neurons, pixels = len(weight), len(carried.carrier)
    if neurons < pixels:
        raise NotPassed(f"has {neurons} neurons for {pixels} pixels")
    low = given.amin(0)
    silent = (given == 0).all(0)
    made = torch.zeros_like(weight)
    own = torch.arange(pixels)
    scale = torch.ones(pixels)
    if hidden:
        own = torch.from_numpy(rng.permutation(neurons)[:pixels])
        scale = torch.from_numpy(rng.uniform(0.5, 1.5, pixels).astype(np.float32))
        others = torch.ones(neurons, dtype=torch.bool)
        others[own] = False
        made[others] = -weight[others].abs()
        made[:, silent] = weight[:, silent]
    made[own, carried.carrier] = scale
    lift = (-low[carried.carrier] * scale).clamp(min=0)
    if bias is None:
        if (lift > 0).any():
            raise NotPassed("has no bias that would keep the normalised sample from being negative")
        return made, None
    others_bias = -bias.abs() if hidden else torch.zeros_like(bias)
    others_bias[own] = lift
    return made, others_bias


def _padding(layer: nn.Conv2d, axis: int) -> tuple[int, int]:
    """Zeros before and after one axis."""
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    assert isinstance(layer.padding, tuple)
    return layer.padding[axis], layer.padding[axis]


def _cover(
    side: int, kernel: int, stride: int, dilation: int, before: int, after: int
) -> list[int]:
    """Fewest places of a kernel's one weight that together see a whole side.

    Of pixels as many steps apart as there are, a place sees a stretch without gaps, so
    it is enough to take, for the first pixel that is not seen yet, the place that sees
    most from there on.

    Raises:
        NotPassed: Some pixels are never seen.
    """
    outputs = (side + before + after - dilation * (kernel - 1) - 1) // stride + 1
    sees = {
        place: {
            pixel
            for output in range(outputs)
            if 0 <= (pixel := output * stride - before + place * dilation) < side
        }
        for place in range(kernel)
    }
    left = set(range(side))
    if never := left.difference(*sees.values()):
        raise NotPassed(
            f"never sees {len(never)} of {side} rows or columns (kernel {kernel}, stride {stride})"
        )
    chosen: list[int] = []
    middle = kernel // 2
    while left:
        seeing = [place for place in sees if min(left) in sees[place]]
        best = max(seeing, key=lambda place: (len(sees[place] & left), -abs(place - middle)))
        chosen.append(best)
        left -= sees[best]
    return chosen


def _free_filters(
    layer: nn.Conv2d, channels: list[int], copies: int, rng: np.random.Generator
) -> dict[int, list[int]]:
    """Filters at random, ``copies`` for each channel, among those that see the channel.

    Raises:
        NotPassed: There are not enough.
    """
    per_group, seen_per_group = (
        layer.out_channels // layer.groups,
        layer.in_channels // layer.groups,
    )
    shuffled = {
        group: (group * per_group + rng.permutation(per_group)).tolist()
        for group in range(layer.groups)
    }
    free: dict[int, list[int]] = {}
    for channel in channels:
        pool = shuffled[channel // seen_per_group]
        if len(pool) < copies:
            raise NotPassed(
                f"has {layer.out_channels} filters, and passing on {len(channels)} channels takes "
                f"{copies} for each (kernel {layer.kernel_size}, stride {layer.stride}, "
                f"{layer.groups} group(s))"
            )
        free[channel], shuffled[channel // seen_per_group] = pool[:copies], pool[copies:]
    return free
