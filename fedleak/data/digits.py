"""scikit-learn's small digits."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedleak.data.arrays import hold_out
from fedleak.data.source import Source
from fedleak.records import Dataset, DataSplits


class Digits(Source):
    """1,797 handwritten digits, 1x8x8 with 17 grey levels; needs no download.

    One sample in five is held out, evenly over the classes (see `hold_out`): 1,438
    train, 359 test.
    """

    kind: Literal["digits"] = "digits"

    def load(self) -> DataSplits:
        """Read the digits; the levels 0..16 become float32 in [0, 1]."""
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        digits = Dataset(
            inputs=(images / 16).astype(np.float32).reshape(-1, 1, 8, 8),
            labels=labels.astype(np.int64),
            classes=10,
        )
        return hold_out(digits, fraction=0.2, path="data.kind")
