"""A whole model's weights, turned into a trap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from fedleak.attacks.embedding import behind_embedding
from fedleak.attacks.structure import (
    Carried,
    carried_pixels,
    input_dense,
    network_without,
    seen_by,
    spelling,
)
from fedleak.errors import FedLeakError, nearest
from fedleak.traps.passing import NotPassed, pass_through_convolution, pass_through_dense
from fedleak.traps.rows import trap_rows

Seen = TypeVar("Seen")


class NoTrap(FedLeakError):
    """A model cannot be turned into a trap; says why."""


def set_trap(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    train_mode: bool,
    input_shape: tuple[int, ...],
    *,
    scaling: float,
    sigma: float,
    rng: np.random.Generator,
    layer: str | None = None,
    hidden: bool = False,
) -> dict[str, Tensor]:
    """Weights that make a model's update contain its samples (Boenisch et al., §6, §7, App. B).

    Every convolution and dense layer before the trapped one lets the sample pass
    (`fedleak.traps.passing`); the rows of the trapped one are made by
    `fedleak.traps.trap_rows`, over the features that carry the sample, and its biases
    zero. What follows is left as it was.

    Which layers pass the sample on:

    - A convolution whose kernel, moved by its stride over the padded image, sees every
      pixel, and that has filters enough: for each image channel stride height x stride
      width of them (one with stride 1), each of which takes over other pixels; more where
      padding does not keep the size. Each group of a grouped convolution needs them for
      its own channels.
    - A dense layer with at least as many neurons as pixels.
    - ReLU, flattening, dropout, normalisation by fixed values.
    - Pooling, maximal or average, whose windows hold one pixel each: of size and stride 1,
      adaptive to the size that the image has, or of an image that strides have brought
      down to a single place.

    Which do not:

    - Max pooling of more. Which pixel of a window goes on depends on the sample, and one
      that is the largest of no window is lost, also with stride 1, where windows overlap.
    - Average pooling of more: means arrive, and no pixel by itself.
    - A stride that steps over pixels, because the kernel is smaller than it.
    - Sigmoid, tanh and whatever else is not linear above zero, and batch statistics.

    Whether it worked is not taken for granted but seen by passing samples through, so it
    holds for layers of a user's own, too.

    Of a model that takes texts, tokens are embedded uniformly at random in [0, 1], and
    the layers behind take these for the sample (§8).

    The attack assumes samples in [0, 1], with pixels that tend to be bright together.

    Args:
        model: The architecture.
        tensors: Parameters and buffers by name.
        train_mode: Whether clients train in train mode.
        input_shape: ``*input`` of one sample.
        scaling: The paper's s, in (0, 1).
        sigma: Standard deviation of the trap weights, > 0.
        rng: Source of the draws.
        layer: Name of the dense layer that is the trap; None for the first one.
        hidden: Whether layers that let the sample pass hide it, by scaling at random.

    Returns:
        The tensors that differ, by name, float32.

    Raises:
        NoTrap: The sample cannot be brought to the layer; says where it gets lost.
        ValueError: ``scaling`` or ``sigma`` is out of its range.
    """
    behind = behind_embedding(model, input_shape)
    if behind is not None:
        table = tensors[behind.weight]
        rest = {name: tensor for name, tensor in tensors.items() if name != behind.weight}
        behind_it = set_trap(
            behind.model,
            rest,
            train_mode,
            behind.input_shape,
            scaling=scaling,
            sigma=sigma,
            rng=rng,
            layer=layer,
            hidden=hidden,
        )
        embeddings = torch.from_numpy(rng.random(tuple(table.shape), dtype=np.float32))
        return {behind.weight: embeddings, **behind_it}
    changed = {name: tensor.detach().float() for name, tensor in tensors.items()}
    spelt = spelling(input_shape)
    ran, target = _layers(model, changed, train_mode, spelt[:2], layer)
    if f"{target}.bias" not in changed:
        raise NoTrap(f"trap weights need a bias in the dense layer; {target!r} has none")
    before = ran[: ran.index(target)]
    passing = [n for n in before if isinstance(model.get_submodule(n), nn.Conv2d | nn.Linear)]
    convolutions = [n for n in passing if isinstance(model.get_submodule(n), nn.Conv2d)]
    touched: dict[str, Tensor] = {}
    for name in passing:
        given = seen_by(name, model, changed, train_mode, spelt)
        carried = carried_pixels(given.flatten(1), spelt)
        if not carried.all():
            raise NoTrap(_lost(model, changed, train_mode, spelt, name))
        module = model.get_submodule(name)
        sent = changed[f"{name}.weight"], changed.get(f"{name}.bias")
        try:
            if isinstance(module, nn.Conv2d):
                last = name == convolutions[-1]
                weight, bias = pass_through_convolution(
                    module, sent, given, carried, last=last, hidden=hidden, rng=rng
                )
            else:
                weight, bias = pass_through_dense(sent, given, carried, hidden=hidden, rng=rng)
        except NotPassed as reason:
            raise NoTrap(f"the sample cannot pass {name!r}: the layer {reason}") from None
        touched[f"{name}.weight"] = weight
        if bias is not None:
            touched[f"{name}.bias"] = bias
        changed.update(touched)
    found = input_dense(model, changed, train_mode, input_shape)
    if found is None or found.name != target:
        raise NoTrap(_lost(model, changed, train_mode, spelt, target))
    if not _switched_off(model, changed, train_mode, spelt[:2], target):
        raise NoTrap(
            f"no ReLU switches the neurons of {target!r} off, so every sample has a part in the "
            "gradient of each of them: nothing could be read out. Use a model with ReLU behind "
            "a hidden dense layer"
        )
    silent = (seen_by(target, model, changed, train_mode, spelt) == 0).all(0)
    weight = changed[f"{target}.weight"]
    rows = trap_rows(len(weight), len(found.carrier), scaling=scaling, sigma=sigma, rng=rng)
    # In terms of pixels: what was done to them on the way is undone in the weights.
    scale, shift = found.scale.float(), found.shift.float()
    rows /= scale
    trapped = torch.where(silent, weight, 0.0)
    trapped[:, found.carrier] = rows
    touched[f"{target}.weight"] = trapped
    touched[f"{target}.bias"] = -(rows @ shift)
    return touched


def _switched_off(
    model: nn.Module, tensors: Mapping[str, Tensor], train_mode: bool, samples: Tensor, target: str
) -> bool:
    """Whether a neuron that a sample makes negative has no gradient of that sample."""
    network = network_without(tensors, model, train_mode, samples)
    negative: list[Tensor] = []

    def replace(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        negative.append(torch.full_like(output, -1.0).requires_grad_())
        return negative[-1] * 1

    network.get_submodule(target).register_forward_hook(replace)
    output = functional_call(network, dict(tensors), (samples,))
    # Squares, so that no normalisation of the output makes the sum a constant.
    (gradient,) = torch.autograd.grad(output.square().sum(), negative[-1], allow_unused=True)
    return gradient is None or not gradient.any()


def trapped_layer(model: nn.Module, input_shape: tuple[int, ...], layer: str | None = None) -> str:
    """Name of the dense layer that `set_trap` makes the trap.

    Raises:
        NoTrap: There is none.
    """
    behind = behind_embedding(model, input_shape)
    if behind is not None:
        return trapped_layer(behind.model, behind.input_shape, layer)
    samples = spelling(input_shape)[:2]
    return _layers(model, model.state_dict(), False, samples, layer)[1]


def _layers(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    train_mode: bool,
    samples: Tensor,
    layer: str | None,
) -> tuple[list[str], str]:
    """All layers in the order in which they run, and the dense one that is the trap."""
    ran = _ran(model, tensors, train_mode, samples)
    dense = [name for name in ran if isinstance(model.get_submodule(name), nn.Linear)]
    if not dense:
        raise NoTrap("trap weights need a dense layer; this model has none")
    if layer is not None and layer not in dense:
        raise NoTrap(
            f"{layer!r} is no dense layer of this model; there are: {', '.join(dense)}."
            f"{nearest(layer, dense)}"
        )
    return ran, layer or dense[0]


def _ran(
    model: nn.Module, tensors: Mapping[str, Tensor], train_mode: bool, samples: Tensor
) -> list[str]:
    """Names of the innermost modules in the order in which they ran, once each."""
    network = network_without(tensors, model, train_mode, samples)
    ran = _watched(network, tensors, samples, lambda name, *_: name)
    return [name for name in ran if ran.count(name) == 1]


def _watched(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    samples: Tensor,
    look: Callable[[str, nn.Module, Any, Any], Seen],
) -> list[Seen]:
    """What ``look(name, layer, given, gives)`` sees of each innermost module as it runs."""
    seen: list[Seen] = []

    def watch(name: str, module: nn.Module) -> None:
        def hook(layer: nn.Module, given: tuple[Any, ...], gives: Any) -> None:
            # What is given by keyword does not come here: what it gives must tell.
            seen.append(look(name, layer, given[0] if given else gives, gives))

        hooks.append(module.register_forward_hook(hook))

    hooks: list[RemovableHandle] = []
    for name, module in network.named_modules():
        if name and not list(module.children()):
            watch(name, module)
    with torch.no_grad():
        functional_call(network, dict(tensors), (samples,))
    for hook in hooks:
        hook.remove()
    return seen


def _lost(
    model: nn.Module, tensors: Mapping[str, Tensor], train_mode: bool, spelt: Tensor, target: str
) -> str:
    """Where pixels get lost that do not arrive at a layer, and why."""
    network = network_without(tensors, model, train_mode, spelt)

    def one(_: str, __: nn.Module, ___: Any, gives: Any) -> Any:
        return gives[-1].flatten().clone() if isinstance(gives, Tensor) else None

    def arrives(features: Any) -> Carried | None:
        if not isinstance(features, Tensor) or len(features) != len(spelt):
            return None
        carried = carried_pixels(features.flatten(1), spelt)
        return carried if carried.all() else None

    def step(name: str, layer: nn.Module, given: Any, gives: Any) -> Any:
        return name, layer, arrives(given), arrives(gives), one(name, layer, given, gives)

    last = "the input"
    # What becomes of a sample must not depend on the others of its batch, either.
    alone = _watched(network, tensors, spelt[[-1, -1]], one)
    steps = _watched(network, tensors, spelt, step)
    for (name, layer, before, behind, sample), other in zip(steps, alone, strict=True):
        if before is None:
            return f"the sample gets lost between {last} and {name!r}: {_NOT_ALONE}"
        if name == target:
            break
        if behind is None or not behind.same(sample, other):
            return f"the sample gets lost at {name!r}, {layer}: {_why(layer)}"
        last = repr(name)
    return f"the sample does not arrive at {target!r}: {_NOT_ALONE}"


_NOT_ALONE = "pixels do not arrive by themselves, scaled and shifted by constants"

_MAXIMA = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.FractionalMaxPool2d)
_MEANS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def _why(layer: nn.Module) -> str:
    """What a layer does to pixels that do not arrive behind it."""
    if getattr(layer, "kernel_size", None) in (1, (1, 1)):
        return "its windows are single pixels, and its stride steps over the others"
    if isinstance(layer, _MAXIMA):
        return (
            "it hands on the largest pixel of each window, and which one that is depends on the "
            "sample; a pixel that is the largest of no window is lost, also where windows overlap"
        )
    if isinstance(layer, _MEANS):
        return "it hands on the mean of each window, and no pixel of it by itself"
    return f"behind it {_NOT_ALONE}"
