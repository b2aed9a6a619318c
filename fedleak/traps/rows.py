"""Weight rows that few samples of a batch activate."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_LEAST = 2.0**-24


def trap_rows(
    neurons: int, pixels: int, *, scaling: float, sigma: float, rng: np.random.Generator
) -> Tensor:
    """Rows of Boenisch et al., Alg. 1, for inputs in [0, 1].

    Each row has as many negative weights as positive ones, at random places: absolute
    values of normal draws, and the same ones, shuffled, times ``scaling``. A sample
    activates the row only where its bright pixels happen to meet the positive weights.
    Which samples do does not depend on ``sigma``. Of an odd number of pixels every row
    leaves out one, at a random place: with one more weight of either sign the balance
    on which the algorithm rests would be lost.

    Args:
        neurons: Rows.
        pixels: Weights in a row.
        scaling: Size of the positive weights in that of the negative ones, the paper's s,
            in (0, 1).
        sigma: Standard deviation of the normal distribution, > 0.
        rng: Source of the draws.

    Returns:
        ``(neurons, pixels)`` float32.

    Raises:
        ValueError: ``scaling`` or ``sigma`` is out of its range.
    """
    if not 0 < scaling < 1:
        raise ValueError(
            f"the scaling factor s must lie between 0 and 1, got {scaling:g}: at 1 a row is "
            "active for half of all samples, at 0 for none"
        )
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma:g}")
    half = pixels // 2
    rows = np.zeros((neurons, pixels), dtype=np.float32)
    draws = rng.standard_normal((neurons, half), dtype=np.float32)
    # A draw in float32 may be zero, which is neither negative nor positive.
    np.maximum(np.abs(draws, out=draws), np.float32(_LEAST), out=draws)
    draws *= sigma
    np.negative(draws, out=rows[:, :half])
    np.multiply(draws, scaling, out=rows[:, half : 2 * half])
    return torch.from_numpy(rng.permuted(rows, axis=1, out=rows))


def are_trap_rows(weight: Tensor, bias: Tensor) -> bool:
    """Whether a dense layer's rows ``(neurons, pixels)`` are such as `trap_rows` makes.

    Only those for inputs in [0, 1] as they are: for others the bias is not zero.
    """
    half = weight.shape[1] // 2
    negative, positive = weight.clamp(max=0), weight.clamp(min=0)
    counts = torch.stack([(negative < 0).sum(1), (positive > 0).sum(1)])
    if bias.any() or not half or not (counts == half).all():
        return False
    scaling = -positive.double().sum(1) / negative.double().sum(1)
    return bool(scaling[0] < 1) and torch.allclose(scaling, scaling[0], rtol=1e-4)
