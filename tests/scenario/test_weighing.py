"""What one run says of an expectation, against closed forms, scipy and simulation."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import pytest
from scipy import stats

from fedleak.scenario.weighing import Found, rank_correlation, weigh


def found(values: Sequence[float], interval: tuple[float, float] | None = None) -> Found:
    return Found(dict(enumerate(values)), interval)


def test_of_a_mean_it_is_students_t() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    measured, ends = weigh(found(values), None, "mean")
    assert measured == pytest.approx(np.mean(values))
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert ends == pytest.approx(expected)
    assert weigh(found([3.0]), None, "mean") == (3.0, None)
    assert weigh(found([]), None, "mean") == (None, None)
    assert weigh(found(values), None, "max") == (5.0, None)


def test_two_layers_are_paired_sample_by_sample() -> None:
    rng = np.random.default_rng(1)
    samples = rng.normal(size=30) * 100  # differ more than the layers do
    one, other = samples + 1 + 0.1 * rng.normal(size=30), samples
    measured, ends = weigh(found([*one]), found([*other]), "mean")
    paired = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert measured == pytest.approx(np.mean(one) - np.mean(other))
    assert ends == pytest.approx((paired.low, paired.high))
    shuffled = Found(dict(zip(range(5, 35), other, strict=True)))
    assert weigh(found([*one]), shuffled, "mean")[1] is None, "not the same samples"


def test_of_two_values_with_intervals_of_their_own() -> None:
    """Zou and Donner 2008, eq. 1 to 3, with the ends at different distances."""
    measured, ends = weigh(found([5.0], (4.0, 8.0)), found([2.0], (0.0, 2.5)), "mean")
    assert measured == 3.0
    assert ends == pytest.approx((3 - math.hypot(1, 0.5), 3 + math.hypot(3, 2)))
    assert weigh(found([5.0], (4.0, 8.0)), None, "median") == (5.0, (4.0, 8.0))


@pytest.mark.parametrize("aggregate", ["median", "spread"])
def test_a_bootstrap_covers_what_is_true(aggregate: str) -> None:
    """In about 95 of 100 simulated studies the interval holds the true value."""
    rng = np.random.default_rng(2)
    true = 1.0 if aggregate == "median" else 0.5
    held = 0
    for _ in range(100):
        _, ends = weigh(found([*rng.normal(1.0, 0.5, size=40)]), None, aggregate)  # type: ignore[arg-type]
        assert ends is not None
        held += ends[0] <= true <= ends[1]
    assert 85 <= held <= 100


def test_few_samples_have_no_bootstrap() -> None:
    measured, ends = weigh(found([1.0, 2.0, 9.0]), None, "median")
    assert (measured, ends) == (2.0, None)
    assert weigh(found([1.0]), None, "spread") == (None, None)
    spread, _ = weigh(found([1.0, 3.0]), None, "spread")
    assert spread == pytest.approx(math.sqrt(2) / 2)


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(3)
    one = rng.normal(size=30).round(1)  # with ties
    other = one + rng.normal(size=30)
    pairs: dict[Hashable, list[tuple[float, float]]] = {
        index: [(a, b)] for index, (a, b) in enumerate(zip(one, other, strict=True))
    }
    measured, ends = rank_correlation(pairs)
    assert measured == pytest.approx(stats.spearmanr(one, other).statistic)
    assert ends is not None and ends[0] < measured < ends[1]
    # Bonett and Wright 2000: the interval from Fisher's z.
    reach = 1.96 * math.sqrt((1 + measured**2 / 2) / 27)
    low, high = np.tanh(np.arctanh(measured) + np.array([-reach, reach]))
    assert ends == pytest.approx((low, high), abs=0.12)


def test_samples_measured_under_several_settings_are_drawn_whole() -> None:
    """Ten copies of each pair are no more evidence than one."""
    rng = np.random.default_rng(4)
    points = rng.normal(size=(12, 2))
    points[:, 1] += points[:, 0]
    once = rank_correlation({i: [(a, b)] for i, (a, b) in enumerate(points)})
    often = rank_correlation({i: [(a, b)] * 10 for i, (a, b) in enumerate(points)})
    assert once[0] == pytest.approx(often[0])
    assert once[1] == pytest.approx(often[1], abs=0.02)


def test_what_is_the_same_everywhere_has_no_rank() -> None:
    assert rank_correlation({0: [(1.0, 2.0)], 1: [(1.0, 3.0)], 2: [(1.0, 4.0)]}) == (None, None)
    assert rank_correlation({0: [(1.0, 2.0)], 1: [(2.0, 3.0)]}) == (None, None)
    assert rank_correlation({}) == (None, None)
