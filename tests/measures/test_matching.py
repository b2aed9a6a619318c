from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fedleak.measures import match
from fedleak.records import Reconstruction, Truth


def matched(found: np.ndarray, original: np.ndarray) -> list[int]:
    reconstruction = Reconstruction(torch.from_numpy(found), None, torch.ones(len(found)))
    return match(reconstruction, Truth(original, np.zeros(len(original), np.int64))).tolist()


@pytest.mark.parametrize(("found", "original"), [(4, 4), (2, 4), (5, 3)])
def test_the_total_is_the_least_of_all_assignments(found: int, original: int) -> None:
    rng = np.random.default_rng(found)
    made = rng.random((found, 1, 3, 3)).astype(np.float32)
    true = rng.random((original, 1, 3, 3)).astype(np.float32)
    errors = ((true[:, None] - made[None]).astype(np.float64) ** 2).mean((2, 3, 4))
    if found >= original:
        least = min(
            sum(errors[i, j] for i, j in enumerate(chosen))
            for chosen in itertools.permutations(range(found), original)
        )
    else:
        least = min(
            sum(errors[i, j] for j, i in enumerate(chosen))
            for chosen in itertools.permutations(range(original), found)
        )
    result = matched(made, true)
    used = [index for index in result if index >= 0]
    assert len(used) == len(set(used)) == min(found, original)
    total = sum(errors[i, j] for i, j in enumerate(result) if j >= 0)
    assert total == pytest.approx(least, rel=1e-9)


def test_a_shuffled_batch_is_put_in_order() -> None:
    original = np.random.default_rng(0).random((5, 1, 4, 4)).astype(np.float32)
    order = [3, 0, 4, 1, 2]
    assert matched(original[order], original) == [order.index(i) for i in range(5)]


def test_nothing_found_matches_nothing() -> None:
    original = np.zeros((2, 3), np.float32)
    assert matched(np.zeros((0, 3), np.float32), original) == [-1, -1]
