"""Which parameters a defense protects, where it protects some layers only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from fedleak.errors import nearest


def protected(names: Iterable[str], layers: Sequence[str] | None) -> list[str]:
    """The parameters of some layers.

    Args:
        names: Parameters, in the model's order.
        layers: Names of layers, of modules that hold several, or of parameters; None for all.
    """
    return [name for name in names if layers is None or any(_within(name, x) for x in layers)]


def no_such_layer(model: nn.Module, layers: Sequence[str]) -> str | None:
    """Say which of the layers has no trained parameters and which have, or return None."""
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    for layer in layers:
        if not protected(names, [layer]):
            there = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
            return (
                f"no layer {layer!r} with trained parameters; there are: "
                f"{', '.join(there)}.{nearest(layer, [*there, *names])}"
            )
    return None


def _within(name: str, layer: str) -> bool:
    """Whether a parameter is that layer's, or the layer names the parameter itself."""
    return name == layer or name.startswith(f"{layer}.")
