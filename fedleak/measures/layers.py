"""Which parameters make up a layer."""

from __future__ import annotations

from collections.abc import Iterable


def layers_of(parameters: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Parameters by the module that holds them, in the model's order.

    Args:
        parameters: Names, such as ``conv1.weight``; one that the model itself holds is a
            layer of its own.

    Returns:
        For each layer that has parameters its name, ``conv1``, and theirs.
    """
    layers: dict[str, tuple[str, ...]] = {}
    for name in parameters:
        module = name.rpartition(".")[0] or name
        layers[module] = (*layers.get(module, ()), name)
    return layers
