"""A copy of an architecture that can be evaluated without side effects."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def evaluation_copy(
    model: nn.Module, train_mode: bool, like: Tensor, replaced: dict[int, Tensor] | None = None
) -> nn.Module:
    """Return a copy of ``model`` whose output depends on its inputs and tensors alone.

    In train mode, batch and instance norm use the statistics of the batch and leave
    their running ones alone. Dropout is off in either mode: its masks are drawn on the
    client and not disclosed, and the mean network is the best guess at them.

    Args:
        model: The architecture; it is not changed.
        train_mode: Whether the client trained in train mode.
        like: Device and floating-point type of the copy.
        replaced: By the id of a tensor of the model, what the copy has in its place.
    """
    # What deepcopy finds in its second argument it takes for copied.
    network = copy.deepcopy(model, dict(replaced or {})).to(device=like.device, dtype=like.dtype)
    network.requires_grad_(False).eval()
    if train_mode:
        for module in network.modules():
            if isinstance(module, _NormBase):
                # Without running statistics, the layer normalises by the batch's own.
                module.running_mean = None
                module.running_var = None
                module.num_batches_tracked = None
                module.track_running_stats = False
                module.train()
    return network
