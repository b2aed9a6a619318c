"""Leaving out the small entries of an update: what pruning and top-k share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from clients.defenses.defense import Update

Scope = Literal["layer", "model"]
"""Whether entries are compared within each parameter tensor or over the whole update."""


def smallest_zeroed(update: Update, left_out: Callable[[int], int], scope: Scope) -> Update:
    """The update with its entries of least magnitude set to zero.

    Args:
        update: What training, and the defenses before, made.
        left_out: How many of so many entries become zero. Where none does, the tensor is
            handed on as the object it is.
        scope: Among which entries the smallest are looked for.
    """
    if scope == "layer":
        return {name: _zeroed(value, left_out) for name, value in update.items()}
    flat = torch.cat([value.flatten() for value in update.values()])
    zeroed = _zeroed(flat, left_out)
    if zeroed is flat:
        return update
    parts = torch.split(zeroed, [value.numel() for value in update.values()])
    return {
        name: part.view_as(value) for (name, value), part in zip(update.items(), parts, strict=True)
    }


def _zeroed(values: Tensor, left_out: Callable[[int], int]) -> Tensor:
    flat = values.flatten()
    count = left_out(len(flat))
    if not count:
        return values
    smallest = np.argpartition(flat.abs().numpy(), count - 1)[:count]
    return flat.index_fill(0, torch.from_numpy(smallest), 0.0).view_as(values)
