from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedleak.data.arrays import as_images, as_labels, checked, hold_out
from fedleak.errors import ScenarioError
from fedleak.records import Dataset, DataSplits


def dataset(n: int = 6, **changes: object) -> Dataset:
    fields = {
        "inputs": np.zeros((n, 1, 2, 2), dtype=np.float32),
        "labels": np.arange(n, dtype=np.int64) % 3,
        "classes": 3,
        "attributes": {"writer": np.arange(n)},
    }
    return Dataset(**(fields | changes))


@pytest.mark.parametrize(
    ("shape", "pixel", "expected"),
    [
        ((4, 5, 6), (1, 2, 3), (1, 0, 2, 3)),
        ((4, 3, 5, 6), (1, 2, 3, 4), (1, 2, 3, 4)),
        ((4, 5, 6, 3), (1, 3, 4, 2), (1, 2, 3, 4)),
        ((4, 5, 6, 1), (1, 3, 4, 0), (1, 0, 3, 4)),
    ],
)
def test_a_pixel_lands_where_the_layout_rule_says(
    shape: tuple[int, ...], pixel: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    array = np.zeros(shape, dtype=np.uint8)
    array[pixel] = 255
    images = as_images(array, "data.path", "x")
    assert np.argwhere(images).tolist() == [list(expected)]
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous


def test_floats_become_float32() -> None:
    assert as_images(np.full((2, 3, 4), 0.5), "p", "x").dtype == np.float32


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 5), np.uint8), "4x5"),
        (np.zeros((4, 5, 6, 7), np.uint8), "4x5x6x7"),
        (np.zeros((4, 5, 6), np.int64), "int64"),
        (np.zeros((4, 5, 6), bool), "bool"),
    ],
)
def test_arrays_that_are_no_images(
    array: np.ndarray, says: str, refused: Callable[..., str]
) -> None:
    assert says in refused("data.path", as_images, array, "data.path", "x")


def test_labels_may_be_a_column() -> None:
    assert as_labels(np.array([[2], [0]], np.uint8), "p", "y").tolist() == [2, 0]


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((3, 2), int), np.array(["a"])])
def test_arrays_that_are_no_labels(array: np.ndarray, refused: Callable[..., str]) -> None:
    assert "integers" in refused("p", as_labels, array, "p", "y")


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=80),
    fraction=st.floats(0.01, 0.99),
)
def test_hold_out_splits_every_class_in_proportion(labels: list[int], fraction: float) -> None:
    n = len(labels)
    whole = dataset(n, labels=np.array(labels, dtype=np.int64), classes=5)
    splits = hold_out(whole, fraction, "data.path")
    held = splits.test.attributes["writer"]
    assert sorted([*splits.train.attributes["writer"], *held]) == list(range(n))
    assert len(held) == min(max(round(n * fraction), 1), n - 1)
    assert splits.test.labels.tolist() == [labels[i] for i in held]
    for label in range(5):
        share = len(held) * labels.count(label) / n
        assert abs(splits.test.labels.tolist().count(label) - share) < 1 + 1e-9


def test_hold_out_needs_two_samples(refused: Callable[..., str]) -> None:
    assert "at least 2" in refused("data.path", hold_out, dataset(1), 0.5, "data.path")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inputs": np.zeros((0, 1, 2, 2), np.uint8)}, "no samples"),
        ({"inputs": np.zeros((6, 1, 2, 2), np.int32)}, "int32"),
        ({"inputs": np.full((6, 1, 2, 2), np.nan, np.float32)}, "NaN"),
        ({"inputs": np.full((6, 1, 2, 2), 255, np.float32)}, "[255, 255]"),
        ({"inputs": np.full((6, 1, 2, 2), -0.1, np.float32)}, "divide by 255"),
        ({"labels": np.zeros(5, np.int64)}, "6 inputs"),
        ({"labels": np.zeros(6, np.float32)}, "float32"),
        ({"labels": np.array([0, 1, 2, 3, 0, 0])}, "0..3"),
        ({"labels": np.array([0, 1, 2, -1, 0, 0])}, "-1..2"),
        ({"classes": 10**9}, "more than 100000"),
        ({"attributes": {"writer": np.arange(5)}}, "'writer'"),
    ],
)
def test_a_broken_training_set_is_refused(changes: dict[str, object], says: str) -> None:
    splits = DataSplits(dataset(**changes), dataset(classes=changes.get("classes", 3)))
    with pytest.raises(ScenarioError) as caught:
        checked(splits, "data.path")
    assert caught.value.problems[0].path == "data.path"
    assert says in str(caught.value.problems[0])
    assert "training data" in str(caught.value.problems[0])


def test_all_problems_are_reported_together() -> None:
    test = dataset(inputs=np.full((6, 3, 2, 2), 7.0, np.float32), labels=np.full(6, 5), classes=4)
    with pytest.raises(ScenarioError) as caught:
        checked(DataSplits(dataset(), test), "data.path")
    text = [str(problem) for problem in caught.value.problems]
    assert len(text) == 4
    assert "[7, 7]" in text[0]
    assert "0..3" in text[1]
    assert "shape" in text[2]
    assert "classes" in text[3]


def test_good_splits_pass_unchanged() -> None:
    splits = DataSplits(dataset(), dataset())
    assert checked(splits, "data.path") is splits
