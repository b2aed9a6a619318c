"""Which reconstruction belongs to which true sample."""

from __future__ import annotations

import numpy as np
import torch

from fedleak.records import Indices, Reconstruction, Truth


def match(reconstruction: Reconstruction, truth: Truth) -> Indices:
    """Assign reconstructions to true samples so that the total MSE is least.

    Of texts, it is the number of tokens that differ.

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
        true = torch.from_numpy(truth.inputs).flatten(1)
        made = reconstruction.inputs.detach().cpu().flatten(1)
        if truth.inputs.dtype == np.int64:
            costs = torch.cdist(true.double(), made.double(), p=0)
        else:
            exactly = "donot_use_mm_for_euclid_dist"
            costs = torch.cdist(true.double(), made.double(), compute_mode=exactly).square()
        rows, columns = linear_sum_assignment(costs.numpy())
        assigned[rows] = columns
    return assigned
