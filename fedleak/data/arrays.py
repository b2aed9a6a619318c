"""From a user's arrays to checked records, and the hold-out rule all sources share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fedleak.errors import Problem, ScenarioError
from fedleak.records import Dataset, DataSplits, Indices

CHANNELS = (1, 3)
MAX_CLASSES = 100_000


def as_images(array: npt.NDArray[Any], path: str, name: str) -> npt.NDArray[np.generic]:
    """Bring images to ``(n, C, H, W)``, uint8 or float32.

    ``(n, H, W)`` is read as greyscale. Of a four-dimensional array, axis 1 holds the
    channels where its length is 1 or 3; otherwise the last axis does, where its length
    is 1 or 3.

    Args:
        array: The images, uint8 or floating point.
        path: Scenario key path to blame.
        name: What the array is called where it comes from.

    Raises:
        ScenarioError: Neither layout fits, or the numbers are of another type.
    """
    shape = "x".join(map(str, array.shape))
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ScenarioError(
            Problem(
                path,
                f"{name} has type {array.dtype}; images are uint8 in 0..255 "
                "or floating point in [0, 1].",
            )
        )
    if array.ndim == 3:
        array = array[:, np.newaxis]
    elif array.ndim == 4 and array.shape[1] in CHANNELS:
        pass
    elif array.ndim == 4 and array.shape[3] in CHANNELS:
        array = array.transpose(0, 3, 1, 2)
    else:
        raise ScenarioError(
            Problem(
                path,
                f"{name} has shape {shape}; images are (n, H, W), (n, C, H, W) "
                "or (n, H, W, C) with 1 or 3 channels.",
            )
        )
    return np.ascontiguousarray(array, None if array.dtype == np.uint8 else np.float32)


def as_labels(array: npt.NDArray[Any], path: str, name: str) -> Indices:
    """Bring integer labels ``(n,)`` or ``(n, 1)`` to ``(n,)`` int64.

    Raises:
        ScenarioError: Another shape, or not integers.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ScenarioError(
            Problem(
                path,
                f"{name} has shape {array.shape} and type {array.dtype}; labels are "
                "integers of shape (n,).",
            )
        )
    return array.astype(np.int64)


def count_classes(*labels: Indices) -> int:
    """Largest label plus one; 1 where there are no labels at all."""
    return max((int(some.max()) + 1 for some in labels if len(some)), default=1)


def take(dataset: Dataset, indices: Indices) -> Dataset:
    """The samples at ``indices``, with their attributes, as a data set of their own."""
    return Dataset(
        dataset.inputs[indices],
        dataset.labels[indices],
        dataset.classes,
        {name: column[indices] for name, column in dataset.attributes.items()},
        dataset.vocabulary,
    )


def hold_out(dataset: Dataset, fraction: float, path: str) -> DataSplits:
    """Split off test samples, with no random draw.

    The samples are put in order of class (of equal class: in the order given) and
    those at evenly spaced places become the test samples. So each class gives its
    share of them, rounded up or down, and classes with a single sample work too.

    Args:
        dataset: All samples, at least two.
        fraction: Share of test samples, in (0, 1); at least one sample goes each way.
        path: Scenario key path to blame.

    Raises:
        ScenarioError: The samples break what `Dataset` promises, or are fewer than two.
    """
    if problems := [Problem(path, complaint) for complaint in _complaints(dataset)]:
        raise ScenarioError(problems)
    count = len(dataset)
    if count < 2:
        raise ScenarioError(
            Problem(path, f"{count} sample(s) found; at least 2 are needed, one held out.")
        )
    held = min(max(round(count * fraction), 1), count - 1)
    places = (np.arange(held) * count + count // 2) // held
    test = np.zeros(count, dtype=bool)
    test[np.argsort(dataset.labels, kind="stable")[places]] = True
    return DataSplits(take(dataset, np.flatnonzero(~test)), take(dataset, np.flatnonzero(test)))


def checked(splits: DataSplits, path: str) -> DataSplits:
    """Return ``splits`` if both sides keep what `Dataset` promises and fit each other.

    Args:
        splits: The samples as read.
        path: Scenario key path to blame.

    Raises:
        ScenarioError: With every problem found.
    """
    problems = [
        Problem(path, f"{name}: {message}")
        for name, dataset in (("training data", splits.train), ("test data", splits.test))
        for message in _complaints(dataset)
    ]
    train, test = splits.train, splits.test
    if train.input_shape != test.input_shape:
        problems.append(
            Problem(
                path,
                f"training samples have shape {train.input_shape}, "
                f"test samples {test.input_shape}; they must agree.",
            )
        )
    if train.classes != test.classes:
        problems.append(
            Problem(path, f"{train.classes} classes to train, {test.classes} to test; must agree.")
        )
    if problems:
        raise ScenarioError(problems)
    return splits


def _complaints(dataset: Dataset) -> Iterator[str]:
    inputs, labels = dataset.inputs, dataset.labels
    if len(inputs) == 0:
        yield "there are no samples."
        return
    if dataset.vocabulary:
        if inputs.dtype != np.int64 or inputs.min() < 0 or inputs.max() >= len(dataset.vocabulary):
            yield f"tokens must be int64 in 0..{len(dataset.vocabulary) - 1}."
    elif inputs.dtype != np.uint8 and inputs.dtype.kind != "f":
        yield f"inputs have type {inputs.dtype}; use uint8 in 0..255 or floating point in [0, 1]."
    elif inputs.dtype.kind == "f":
        low, high = float(inputs.min()), float(inputs.max())
        if np.isnan(low):
            yield "inputs contain NaN; remove those samples."
        elif low < 0 or high > 1:
            yield (
                f"floating point inputs lie in [{low:g}, {high:g}]; bring them to [0, 1] "
                "(for 0..255: store uint8, or divide by 255)."
            )
    if labels.shape != (len(inputs),) or labels.dtype != np.int64:
        yield (
            f"{len(inputs)} inputs, but labels of shape {labels.shape} and type {labels.dtype}; "
            "one int64 label for each input is needed."
        )
    elif dataset.classes > MAX_CLASSES:
        yield (
            f"the largest label asks for {dataset.classes} classes, more than {MAX_CLASSES}; "
            "number the classes from 0 without gaps."
        )
    elif labels.min() < 0 or labels.max() >= dataset.classes:
        yield (
            f"labels lie in {labels.min()}..{labels.max()}; "
            f"with {dataset.classes} classes they must lie in 0..{dataset.classes - 1}."
        )
    for name, column in dataset.attributes.items():
        if column.shape != (len(inputs),):
            yield (
                f"attribute {name!r} has shape {column.shape}; "
                f"one value for each of the {len(inputs)} inputs is needed."
            )
