"""Intervals around what was measured on some samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def mean_interval(
    values: Sequence[float], least: float = -math.inf, most: float = math.inf
) -> tuple[float, float, float]:
    """The mean, and the ends of its 95 % interval by Student's t; NaN ends for one value.

    Args:
        values: At least one.
        least: What no value can be less than; the interval ends there, and holds the mean no
            less often for it.
        most: What no value can be more than.
    """
    # scipy.stats takes a while to import.
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(t.ppf(0.975, len(values) - 1)) * error
    return mean, max(mean - reach, least), min(mean + reach, most)


def share_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934).

    Args:
        successes: In 0..trials.
        trials: At least one.
        level: With which probability, at least, an interval made so holds the share.
    """
    from scipy.stats import binomtest

    ends = binomtest(successes, trials).proportion_ci(level, method="exact")
    return float(ends.low), float(ends.high)
