"""Which reconstruction belongs to which true sample."""

from __future__ import annotations

import numpy as np
import torch

from fedleak.records import Indices, Reconstruction, Truth


def match(reconstruction: Reconstruction, truth: Truth) -> Indices:
    """Assign reconstructions to true samples so that the total MSE is least.

    The order of samples in a batch leaves no trace in an update, so a reconstruction
    may hold them in any order, and some of them only.

    Args:
        reconstruction: ``m`` samples.
        truth: ``b`` samples.

    Returns:
        ``(b,)`` int64: for each true sample the index of its reconstruction, each used
        once at most, or -1 where there are not enough.
    """
    # scipy.optimize takes a while to import.
    from scipy.optimize import linear_sum_assignment

    found, original = len(reconstruction.inputs), len(truth.inputs)
    assigned = np.full(original, -1, dtype=np.int64)
    if found and original:
        distances = torch.cdist(
            torch.from_numpy(truth.inputs).flatten(1).double(),
            reconstruction.inputs.detach().cpu().flatten(1).double(),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        rows, columns = linear_sum_assignment(distances.square().numpy())
        assigned[rows] = columns
    return assigned
