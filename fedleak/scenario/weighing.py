"""What one run says of an expectation: a value, and the 95 % interval that decides it.

Of a mean, or of the mean of differences between two layers or cells that are paired sample by
sample, it is Student's t. Of a median, a spread and a rank correlation it is a percentile
bootstrap (Efron 1979) that draws samples, with all that belongs to one. Of single values that
bring their own interval, as a mean over held-out batches does, it is theirs, and that of a
difference follows from both (MOVER: Zou and Donner 2008), as if they were independent: where
the two are measured on the same draws, which lifts or lowers both, it is wider than it need be.

Samples of one run share a model. Such an interval is about other samples, not other models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedleak.measures.intervals import mean_interval

Aggregate = Literal["mean", "median", "min", "max", "spread"]
AGGREGATES: tuple[Aggregate, ...] = ("mean", "median", "min", "max")
"""Those that every table of a study has; the others are for expectations."""
Interval = tuple[float, float]

_FUNCTIONS: dict[Aggregate, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: float(np.mean(values)),
    "median": lambda values: float(np.median(values)),
    "min": min,
    "max": max,
    "spread": lambda values: float(np.std(values, ddof=1) / np.mean(values)),
}
_DRAWS = 2000
_FEWEST = 8
"""Of fewer samples a bootstrap's intervals are too narrow to be called 95 % ones."""


@dataclass(frozen=True)
class Found:
    """What a run gave of one metric in one layer.

    Attributes:
        values: By what each is about: the sample, or the client and round.
        interval: Of a single value, its own 95 % interval, if it has one.
    """

    values: Mapping[Hashable, float]
    interval: Interval | None = None


def aggregated(values: Sequence[float], aggregate: Aggregate) -> float:
    """One value for several, at least one; of the spread, which is the standard deviation as a
    part of the mean, at least two."""
    return _FUNCTIONS[aggregate](values)


def interval(values: Sequence[float]) -> Interval | None:
    """The 95 % confidence interval of the mean of independent draws (Student's t).

    Returns:
        None for fewer than two values, or where one is not finite.
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    _, low, high = mean_interval(values)
    return low, high


def weigh(
    found: Found, minus: Found | None, aggregate: Aggregate
) -> tuple[float | None, Interval | None]:
    """The value of a run, or the difference of two, and its 95 % interval if it has one."""
    fewest = 2 if aggregate == "spread" else 1
    if any(len(each.values) < fewest for each in (found, minus) if each is not None):
        return None, None
    one = [*found.values.values()]
    if minus is None:
        return aggregated(one, aggregate), found.interval or _between(one, None, aggregate)
    value = aggregated(one, aggregate) - aggregated([*minus.values.values()], aggregate)
    if found.interval is not None and minus.interval is not None:
        (other,) = minus.values.values()
        return value, _mover(one[0], found.interval, other, minus.interval)
    if found.values.keys() != minus.values.keys():
        return value, None
    return value, _between(one, [minus.values[unit] for unit in found.values], aggregate)


def rank_correlation(
    pairs: Mapping[Hashable, Sequence[tuple[float, float]]],
) -> tuple[float | None, Interval | None]:
    """Spearman's rho of pairs, and its 95 % interval over what they belong to.

    Args:
        pairs: By sample; one sample has several where it was measured under several settings.

    Returns:
        Nothing for fewer than three pairs, or where one side is the same in all of them.
    """
    # scipy.stats takes a while to import.
    from scipy.stats import rankdata

    groups = [np.array(each) for each in pairs.values()]

    def rho(chosen: Sequence[int]) -> float:
        points = np.concatenate([groups[index] for index in chosen])
        ranks = rankdata(points, axis=0)
        if len(points) < 3 or (ranks == ranks[0]).all(axis=0).any():
            return math.nan
        return float(np.corrcoef(ranks.T)[0, 1])

    measured = rho(range(len(groups))) if groups else math.nan
    if math.isnan(measured):
        return None, None
    return measured, _bootstrap(len(groups), rho)


def _between(
    one: Sequence[float], minus: Sequence[float] | None, aggregate: Aggregate
) -> Interval | None:
    """Of an aggregate, or of the difference of two of paired values."""
    pairs = np.array([one, [0.0] * len(one) if minus is None else minus])
    if not np.isfinite(pairs).all() or aggregate in ("min", "max"):
        return None  # the least and the greatest say nothing of what lies beyond them
    if aggregate == "mean":
        return interval([*(pairs[0] - pairs[1])])

    def drawn(chosen: Sequence[int]) -> float:
        value = aggregated(pairs[0, chosen].tolist(), aggregate)
        return value if minus is None else value - aggregated(pairs[1, chosen].tolist(), aggregate)

    return _bootstrap(len(one), drawn)


def _bootstrap(count: int, statistic: Callable[[Sequence[int]], float]) -> Interval | None:
    if count < _FEWEST:
        return None
    # The same draws each time: a report that is made again says the same.
    chosen = np.random.default_rng(0).integers(count, size=(_DRAWS, count))
    found = [value for each in chosen if not math.isnan(value := statistic(each))]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def _mover(one: float, about: Interval, other: float, beside: Interval) -> Interval:
    below = math.hypot(one - about[0], beside[1] - other)
    above = math.hypot(about[1] - one, other - beside[0])
    return one - other - below, one - other + above
