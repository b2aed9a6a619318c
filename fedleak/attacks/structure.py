"""Which dense layers of a model play which part, found by watching it work.

A layer's part is read off its inputs and outputs on probe samples, never off its name
or position, so it holds for a user's own model too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fedleak.gradients import evaluation_copy

_ROUNDING = 1e-9
"""Probes run in float64; what agrees to this is equal."""

_SAME = 1e-4
"""Of a pixel's range: features that differ by less, in float32, show the same pixel."""

_CHECKS = 3
"""Samples of noise that confirm it."""

_COARSE = 5
"""Pixels from one point of coarse noise to the next."""


@dataclass(frozen=True)
class Probe:
    """What one forward pass showed.

    Attributes:
        output: The model's output ``(n, K)``.
        inputs: By name, what each dense layer that ran exactly once was given.
        outputs: By name, what it made of that.
    """

    output: Tensor
    inputs: dict[str, Tensor]
    outputs: Mapping[str, Tensor]


def probe(
    model: nn.Module, tensors: Mapping[str, Tensor], train_mode: bool, samples: Tensor
) -> Probe:
    """Run ``model`` with the given parameters and buffers on ``(n, *input)`` samples.

    Raises:
        RuntimeError, ValueError: The model does not accept such samples.
    """
    network = network_without(tensors, model, train_mode, samples)
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def watch(name: str, layer: nn.Module) -> None:
        def record(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            # Clones, because what follows may write in place.
            calls.setdefault(name, []).append((arguments[0].clone(), output.clone()))

        layer.register_forward_hook(record)

    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            watch(name, layer)
    with torch.no_grad():
        output = functional_call(network, _given(network, tensors, samples), (samples,))
    once = {name: records[0] for name, records in calls.items() if len(records) == 1}
    return Probe(
        output=output,
        inputs={name: before for name, (before, _) in once.items()},
        outputs={name: after for name, (_, after) in once.items()},
    )


class _Seen(Exception):
    """Ends a forward pass once a layer was given its input."""


def seen_by(
    name: str,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    train_mode: bool,
    samples: Tensor,
) -> Tensor:
    """What one layer is given for ``(n, *input)`` samples; what follows it is not computed."""
    network = network_without(tensors, model, train_mode, samples)
    seen: list[Tensor] = []

    def stop(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0])
        raise _Seen

    network.get_submodule(name).register_forward_pre_hook(stop)
    with torch.no_grad(), contextlib.suppress(_Seen):
        functional_call(network, _given(network, tensors, samples), (samples,))
    return seen[0]


def _given(network: nn.Module, tensors: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
    """Those of the tensors that the network has, on the device and in the type of ``like``."""
    known = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in network.named_buffers(remove_duplicate=False)}
    return {name: value.to(like) for name, value in tensors.items() if name in known}


def network_without(
    tensors: Mapping[str, Tensor], model: nn.Module, train_mode: bool, like: Tensor
) -> nn.Module:
    """An `evaluation_copy` of ``model``, to be called with the given tensors.

    Of the parameters and buffers that they replace nothing is copied.
    """
    named = (*model.named_parameters(), *model.named_buffers())
    replaced = {id(tensor): _stand_in(tensor) for name, tensor in named if name in tensors}
    return evaluation_copy(model, train_mode, like, replaced)


def _stand_in(tensor: Tensor) -> Tensor:
    empty = torch.empty(0, dtype=tensor.dtype)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def samples_like(count: int, input_shape: tuple[int, ...]) -> Tensor:
    """Random samples ``(n, *input)`` in [0, 1], float64, of brightness and contrast at random.

    Of images ``(C, H, W)``, every other one is smooth: coarse noise, drawn large.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (count, *[1] * len(input_shape))
    noise = torch.rand(count, *input_shape, generator=generator, dtype=torch.float64)
    if len(input_shape) == 3:
        coarse = noise[1::2, :, ::_COARSE, ::_COARSE]
        noise[1::2] = functional.interpolate(coarse, input_shape[1:], mode="bilinear")
    contrast = torch.rand(shape, generator=generator, dtype=torch.float64)
    brightness = torch.rand(shape, generator=generator, dtype=torch.float64)
    return contrast * noise + (1 - contrast) * brightness


def final_dense(seen: Probe) -> str | None:
    """Name of the dense layer whose output is the model's output, if there is one."""
    for name, output in seen.outputs.items():
        same = output.shape == seen.output.shape
        if same and torch.allclose(output, seen.output, rtol=0, atol=0, equal_nan=True):
            return name
    return None


@dataclass(frozen=True)
class InputLayer:
    """A dense layer among whose inputs every pixel appears by itself, at a known place.

    Pixel ``j`` of the flattened sample is feature ``carrier[j]`` of the layer, as
    ``scale[j] * pixel + shift[j]``. Scale and shift are those of whatever lies between:
    normalisation inside the model, convolutions or dense layers that pass the sample on.
    The layer may have further features.

    Attributes:
        name: Name of the `torch.nn.Linear`.
        carrier: ``(pixels,)`` int64, distinct.
        scale: ``(pixels,)`` float64, never 0.
        shift: ``(pixels,)`` float64.
    """

    name: str
    carrier: Tensor
    scale: Tensor
    shift: Tensor

    def pixels(self, carried: Tensor) -> Tensor:
        """Undo what was done on the way: features at the pixels' places, ``(m, pixels)``."""
        return (carried - self.shift.to(carried)) / self.scale.to(carried)


def input_dense(
    model: nn.Module, tensors: Mapping[str, Tensor], train_mode: bool, input_shape: tuple[int, ...]
) -> InputLayer | None:
    """Find the last dense layer that sees the model's input, if there is one.

    Trained or not, a layer does not hand its input on, so this is the first one, unless a
    malicious server made others pass the input to it.

    A black and a white sample give each feature's shift and scale if it carries a pixel,
    two samples that spell every pixel's number say which one, and noise confirms it. The
    noise must then look the same in another batch: a layer behind one that normalises by
    batch statistics does not see the input.

    Args:
        model: The architecture.
        tensors: Parameters and buffers by name; the model's own stand in for others.
        train_mode: Whether the client trained in train mode.
        input_shape: ``*input`` of one sample.

    Raises:
        RuntimeError, ValueError: The model does not accept inputs of this shape.
    """
    # What is given by name need not be copied.
    tensors = {**dict(model.named_parameters()), **tensors}
    spelt = spelling(input_shape).to(next(iter(tensors.values()), torch.empty(0)).device)
    # In float32, as clients compute: nothing has to be copied, and it is exact enough.
    seen = probe(model, tensors, train_mode, spelt)
    for name, features in reversed(seen.inputs.items()):
        if features.dim() != 2 or features.shape[1] < spelt[0].numel():
            continue
        carried = carried_pixels(features, spelt)
        if not carried.all():
            continue
        again = seen_by(name, model, tensors, train_mode, spelt[[-1, -1]])
        if carried.same(features[-1], again[0]):
            return InputLayer(name, carried.carrier, carried.scale, carried.shift)
    return None


def spelling(input_shape: tuple[int, ...]) -> Tensor:
    """Samples ``(n, *input)`` float32 in [0, 1] that tell every pixel by its values.

    Black, white, the two digits of each pixel's number, and noise.
    """
    size = int(torch.Size(input_shape).numel())
    base = math.isqrt(size) + 1
    number = torch.arange(size)
    digits = torch.stack([number // base, number % base]) / base
    noise = torch.rand(_CHECKS, size, generator=torch.Generator().manual_seed(0))
    samples = torch.cat([torch.zeros(1, size), torch.ones(1, size), digits, noise])
    return samples.reshape(-1, *input_shape)


@dataclass(frozen=True)
class Carried:
    """Which of a layer's features show a pixel by itself, as ``scale * pixel + shift``.

    Attributes:
        carrier: ``(pixels,)`` int64, for each pixel a feature that shows it; -1 for none.
        scale: ``(pixels,)`` float64.
        shift: ``(pixels,)`` float64.
    """

    carrier: Tensor
    scale: Tensor
    shift: Tensor

    def all(self) -> bool:
        """Whether every pixel is shown."""
        return bool((self.carrier >= 0).all())

    def same(self, features: Tensor, others: Tensor) -> bool:
        """Whether two of the layer's inputs ``(features,)`` show the same sample."""
        apart = (features - others)[self.carrier].abs()
        return bool((apart <= _SAME * self.scale.abs()).all())


def carried_pixels(features: Tensor, spelt: Tensor) -> Carried:
    """Find the pixels in what a layer was given ``(n, features)`` for `spelling` samples."""
    samples = spelt.flatten(1)
    size = samples.shape[1]
    base = math.isqrt(size) + 1
    black, white = features[:2].double()
    scale = white - black
    levels = (features[2:].double() - black) / scale
    high, low = (levels[:2] * base).round().nan_to_num(-1, -1, -1).long()
    pixel = (high * base + low).clamp(0, size - 1)
    (places,) = ((levels - samples[2:, pixel]).abs() <= _SAME).all(0).nonzero(as_tuple=True)
    carrier = torch.full((size,), -1, device=features.device)
    carrier[pixel[places]] = places
    return Carried(carrier, scale[carrier], black[carrier])


def dense_chain(seen: Probe) -> tuple[str, ...]:
    """Dense layers that end in the final one, from the first on; none without a final one.

    Each sees a function of what the one before it gave that acts on every neuron by itself
    and never decreases: ReLU, sigmoid, tanh, dropout that is off.
    """
    final = final_dense(seen)
    if final is None:
        return ()
    ran = list(seen.inputs)
    chain = [final]
    for name in reversed(ran[: ran.index(final)]):
        given, taken = seen.outputs[name], seen.inputs[chain[0]]
        if given.shape != taken.shape or not _never_decreases(given.flatten(), taken.flatten()):
            break
        chain.insert(0, name)
    return tuple(chain)


def _never_decreases(given: Tensor, taken: Tensor) -> bool:
    """Whether larger values were never turned into smaller ones."""
    return bool((taken[given.argsort()].diff() >= -_ROUNDING).all())
