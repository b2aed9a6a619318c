"""Finding the scaling factor s of trap weights (Boenisch et al., §6.2)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedleak.traps.rows import trap_rows

_GRID = 1 - np.geomspace(0.8, 0.001, 400)
"""Factors that are tried: evenly spread in how far they are from 1."""

_WANTED = 0.65
"""Share of active neurons near which the paper's recall is highest (Tables 5 and 6)."""


def best_scaling(similar: Tensor, neurons: int, rng: np.random.Generator) -> float:
    """The factor with the highest extraction-recall on one batch of similar samples.

    With the factor s, a row is active for a sample where s times what its positive
    weights make of it exceeds what its negative weights do. So each sample has a least
    factor at every row, a row sees the sample with the lowest of them alone until s
    reaches the next, and one product shows the recall for every s at once.

    Args:
        similar: ``(b, *input)`` in [0, 1]; as many as a client trains on.
        neurons: Rows.
        rng: Source of the rows' draws.
    """
    samples = similar.flatten(1).float()
    rows = trap_rows(neurons, samples.shape[1], scaling=0.5, sigma=1.0, rng=rng)
    negative, positive = samples @ rows.clamp(max=0).T, samples @ rows.clamp(min=0).T
    least = torch.nan_to_num(-negative / (2 * positive), nan=torch.inf)
    first = least.topk(min(2, len(least)), dim=0, largest=False)
    alone, begins = first.indices[0].numpy(), first.values[0].numpy()
    ends = first.values[1].numpy() if len(least) > 1 else np.full_like(begins, np.inf)
    recalls = np.array([len(np.unique(alone[(begins < s) & (s <= ends)])) for s in _GRID])
    # Of factors that are as good, the one in the middle.
    best = np.flatnonzero(recalls == recalls.max())
    return float(_GRID[best[len(best) // 2]])


class ScalingSearch:
    """Looks for the factor over rounds, from nothing but the updates that come back.

    How many neurons are active rises with s and can be read off an update. The search
    halves an interval of ``log(1 - s)`` until a share of neurons is active at which
    extraction works best whatever the data: too few, and there is nothing to extract;
    too many, and samples overlay each other.
    """

    def __init__(self) -> None:
        self._low, self._high = np.log(0.8), np.log(0.001)

    @property
    def scaling(self) -> float:
        """The factor to try next, in (0, 1)."""
        return float(1 - np.exp((self._low + self._high) / 2))

    def saw(self, active: float) -> None:
        """Take in which share of neurons, 0..1, was active with `scaling`."""
        middle = (self._low + self._high) / 2
        if active > _WANTED:
            self._high = middle
        else:
            self._low = middle
