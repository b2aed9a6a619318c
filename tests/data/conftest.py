from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fedleak.records import Dataset


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Directory with the real data sets; without it the test is skipped."""
    if "FEDLEAK_DATA" not in os.environ:
        pytest.skip("set FEDLEAK_DATA to the directory with the real data sets")
    return Path(os.environ["FEDLEAK_DATA"])


@pytest.fixture
def toy() -> Dataset:
    """1,000 samples of 10 classes (100 each, in random order) by 20 writers (50 each)."""
    rng = np.random.default_rng(0)
    return Dataset(
        inputs=np.zeros((1000, 1, 2, 2), dtype=np.uint8),
        labels=rng.permutation(np.repeat(np.arange(10), 100)),
        classes=10,
        attributes={"writer": rng.permutation(np.repeat([f"w{i:02d}" for i in range(20)], 50))},
    )
