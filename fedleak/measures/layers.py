"""Which parameters make up a layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from fedleak.records import Observation


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


def released(observation: Observation, own: Mapping[str, Tensor]) -> list[str]:
    """Parameters of which something came back.

    A client that holds a layer back tells nothing by it, whatever the model sent would tell.

    Args:
        observation: What came back.
        own: Gradients at the parameters sent: of a parameter where these are zero as well,
            nothing was held back.
    """
    update = observation.update
    return [name for name, value in own.items() if bool(update[name].any()) or not value.any()]
