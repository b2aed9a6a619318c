"""Which dense layers of a model play which part, found by watching it work.

A layer's part is read off its inputs and outputs on probe samples, never off its name
or position, so it holds for a user's own model too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fedleak.gradients import evaluation_copy

_ROUNDING = 1e-9
"""Probes run in float64; what agrees to this is equal."""

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
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def probe(
    model: nn.Module, tensors: Mapping[str, Tensor], train_mode: bool, samples: Tensor
) -> Probe:
    """Run ``model`` with the given parameters and buffers on ``(n, *input)`` samples.

    Raises:
        RuntimeError, ValueError: The model does not accept such samples.
    """
    network = evaluation_copy(model, train_mode, samples)
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def watch(name: str, layer: nn.Module) -> None:
        def record(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            # Clones, because what follows may write in place.
            calls.setdefault(name, []).append((arguments[0].clone(), output.clone()))

        layer.register_forward_hook(record)

    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            watch(name, layer)
    known = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in network.named_buffers(remove_duplicate=False)}
    given = {name: value.to(samples) for name, value in tensors.items() if name in known}
    with torch.no_grad():
        output = functional_call(network, given, (samples,))
    once = {name: records[0] for name, records in calls.items() if len(records) == 1}
    return Probe(
        output=output,
        inputs={name: before for name, (before, _) in once.items()},
        outputs={name: after for name, (_, after) in once.items()},
    )


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
    """A dense layer that sees every input feature by itself, in known scale and order.

    Its feature ``j`` is ``scale[j] * flattened input[source[j]] + shift[j]``; scale and
    shift are those of the normalisation inside the model (1 and 0 where it has none).

    Attributes:
        name: Name of the `torch.nn.Linear`.
        scale: ``(features,)`` float64, never 0.
        shift: ``(features,)`` float64.
        source: ``(features,)`` int64, a permutation.
    """

    name: str
    scale: Tensor
    shift: Tensor
    source: Tensor

    def pixels(self, features: Tensor, input_shape: tuple[int, ...]) -> Tensor:
        """Undo normalisation and order: ``(m, features)`` to ``(m, *input)``, float64."""
        flat = torch.empty_like(features, dtype=torch.float64)
        flat[:, self.source] = (features.double() - self.shift) / self.scale
        return flat.reshape(-1, *input_shape)


def input_dense(
    model: nn.Module, tensors: Mapping[str, Tensor], train_mode: bool, input_shape: tuple[int, ...]
) -> InputLayer | None:
    """Find the dense layer that sees the model's input, if there is one.

    Black and white samples give each feature's shift and scale, a sample of distinct
    values gives the order of the features, and one more sample confirms all three.
    Every sample is probed as a batch of two copies of itself, so that a layer which
    normalises by batch statistics shows that it does not pass the input on.

    Args:
        model: The architecture.
        tensors: Parameters and buffers by name.
        train_mode: Whether the client trained in train mode.
        input_shape: ``*input`` of one sample.

    Raises:
        RuntimeError, ValueError: The model does not accept inputs of this shape.
    """
    size = int(torch.Size(input_shape).numel())
    generator = torch.Generator().manual_seed(0)
    ramp = (torch.randperm(size, generator=generator, dtype=torch.float64) + 0.5) / size
    check = torch.rand(size, generator=generator, dtype=torch.float64)
    samples = [torch.zeros(size).double(), torch.ones(size).double(), ramp, check]
    seen = [
        probe(model, tensors, train_mode, sample.reshape(1, *input_shape).repeat_interleave(2, 0))
        for sample in samples
    ]
    for name, features in seen[0].inputs.items():
        if features.shape != (2, size):
            continue
        shift, white, ordered, checked = (each.inputs[name][0] for each in seen)
        scale = white - shift
        if not (scale.abs() > _ROUNDING).all():
            continue
        source = torch.empty(size, dtype=torch.int64)
        source[((ordered - shift) / scale).argsort()] = ramp.argsort()
        if torch.allclose(checked, scale * check[source] + shift, rtol=0, atol=_ROUNDING):
            return InputLayer(name, scale, shift, source)
    return None


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
