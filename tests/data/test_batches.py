from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedleak.data import batch_sizes, batches, client_split, poisson_batches

counts = st.integers(1, 60)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(examples=counts, batch_size=counts, steps=st.integers(0, 80))
def test_sizes_are_known_without_the_permutation(
    examples: int, batch_size: int, steps: int
) -> None:
    chosen = batches(examples, batch_size, steps=steps, rng=rng())
    assert [len(batch) for batch in chosen] == batch_sizes(examples, batch_size, steps)


@given(examples=counts, batch_size=counts, epochs=st.integers(1, 4), seed=st.integers(0, 99))
def test_every_epoch_uses_every_sample_once(
    examples: int, batch_size: int, epochs: int, seed: int
) -> None:
    chosen = batches(examples, batch_size, epochs=epochs, rng=rng(seed))
    per_epoch = len(chosen) // epochs
    assert per_epoch == -(-examples // batch_size)
    for epoch in range(epochs):
        part = chosen[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(np.concatenate(part)) == list(range(examples))
        assert all(len(batch) == batch_size for batch in part[:-1])


def test_steps_are_the_beginning_of_the_epochs() -> None:
    steps = batches(10, 4, steps=5, rng=rng())
    epochs = batches(10, 4, epochs=2, rng=rng())
    assert [len(batch) for batch in epochs] == [4, 4, 2, 4, 4, 2]
    assert all(map(np.array_equal, steps, epochs))
    assert steps[0].dtype == np.int64


def test_epochs_are_shuffled_anew() -> None:
    first, second = batches(50, 50, epochs=2, rng=rng())
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.arange(50))


def test_the_stream_alone_decides() -> None:
    one, other = (batches(30, 8, steps=9, rng=rng(seed)) for seed in (1, 1))
    assert all(map(np.array_equal, one, other))
    different = batches(30, 8, steps=9, rng=rng(2))
    assert not all(map(np.array_equal, one, different))


@pytest.mark.parametrize("given_both", [{}, {"steps": 1, "epochs": 1}])
def test_exactly_one_of_steps_and_epochs(given_both: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        batches(4, 2, **given_both, rng=rng())


@given(size=counts, holdout=st.floats(0, 0.999), seed=st.integers(0, 99))
def test_client_split_keeps_every_sample(size: int, holdout: float, seed: int) -> None:
    indices = np.sort(rng(7).choice(1000, size, replace=False)).astype(np.int64)
    train, held = client_split(indices, holdout, rng(seed))
    assert sorted([*train, *held]) == indices.tolist()
    assert len(held) == min(round(size * holdout), size - 1)
    assert len(train) >= 1
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(held) > 0)
    again = client_split(indices, holdout, rng(seed))
    assert np.array_equal(train, again[0])


def test_client_split_is_random() -> None:
    _, held = client_split(np.arange(100), 0.3, rng())
    assert not np.array_equal(held, np.arange(30))
    assert not np.array_equal(held, np.arange(70, 100))


def test_poisson_batches_have_each_sample_by_itself() -> None:
    """Each of the tests fails for a correct sampler with probability 1e-6."""
    chosen = poisson_batches(50, 10, 4000, rng())
    there = np.zeros((4000, 50))
    for row, batch in zip(there, chosen, strict=True):
        row[batch] = 1
        assert np.all(np.diff(batch) > 0)
    assert chosen[0].dtype == np.int64
    # Each sample is in a fifth of the batches, and sizes vary as those of coin tosses do.
    low, high = stats.binom(4000, 0.2).ppf([1e-8, 1 - 1e-8])
    assert np.all((low <= there.sum(0)) & (there.sum(0) <= high))
    sizes = there.sum(1)
    statistic = np.square((sizes - 10) / np.sqrt(50 * 0.2 * 0.8)).sum()
    low, high = stats.chi2(4000).interval(1 - 1e-6)
    assert low * 0.99 < statistic < high * 1.01


def test_poisson_batches_hold_all_where_there_are_few() -> None:
    assert [batch.tolist() for batch in poisson_batches(3, 8, 2, rng())] == [[0, 1, 2]] * 2
