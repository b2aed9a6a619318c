"""Whether a network drops out units when it trains."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

DROPOUT_NOTE = (
    "Clients train with dropout, and attacks, which are not told its masks, search with dropout "
    "off: what attacks find is a lower bound on what leaks."
)


def has_dropout(model: nn.Module) -> bool:
    """Whether any layer of the network is a dropout layer with p > 0."""
    return any(isinstance(layer, _DropoutNd) and layer.p > 0 for layer in model.modules())
