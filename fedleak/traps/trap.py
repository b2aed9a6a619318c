"""A whole model's weights, turned into a trap."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedleak.attacks.embedding import behind_embedding
from fedleak.attacks.structure import (
    carried_pixels,
    input_dense,
    network_without,
    seen_by,
    spelling,
)
from fedleak.errors import FedLeakError, nearest
from fedleak.traps.passing import NotPassed, pass_through_convolution, pass_through_dense
from fedleak.traps.rows import trap_rows


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

    What lies between these layers must leave every pixel by itself, scaled and shifted
    by constants: ReLU, flattening, normalisation by fixed values, dropout do; sigmoid,
    batch statistics and pooling of more than one pixel do not. A layer with a stride
    passes the sample on where its kernel is as large as the stride and it has filters
    enough to put each of the pixels between two steps into a channel of its own. Whether
    it worked is not taken for granted but seen by passing samples through.

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
            raise NoTrap(_lost(model, before, name))
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
        raise NoTrap(_lost(model, before, target))
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
    ran: list[str] = []
    for name, module in network.named_modules():
        if name and not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    with torch.no_grad():
        functional_call(network, dict(tensors), (samples,))
    return [name for name in ran if ran.count(name) == 1]


def _lost(model: nn.Module, before: list[str], name: str) -> str:
    """Where a sample gets lost that does not arrive at a layer."""
    passed = [
        index
        for index, earlier in enumerate(before)
        if isinstance(model.get_submodule(earlier), nn.Conv2d | nn.Linear) and earlier != name
    ]
    end = before.index(name) if name in before else len(before)
    start = max((index + 1 for index in passed if index < end), default=0)
    between = ", ".join(f"{n!r} ({model.get_submodule(n)})" for n in before[start:end])
    return (
        f"the sample cannot be brought to {name!r}: pixels do not arrive there by themselves, "
        f"scaled and shifted by constants{'; on the way are ' + between if between else ''}"
    )
