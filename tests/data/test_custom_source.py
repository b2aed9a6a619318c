from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fedleak.data import CustomSource

MODULE = """
import numpy as np
from fedleak.records import Dataset, DataSplits

def arrays(n=6, high=1.0, test_label=2):
    x = np.linspace(0, high, n * 12).reshape(n, 2, 2, 3)
    return x, np.arange(n) % 2, x[:1] * 0, np.array([test_label])

def vectors(dtype="float32"):
    part = Dataset(np.zeros((4, 7), dtype), np.zeros(4, np.int64), 2)
    return DataSplits(part, part)

def nothing():
    return None

def lists():
    return [[0.0]], [0], [[0.0]], [0]

def breaks():
    raise KeyError("my own mistake")

number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_data.py").write_text(MODULE)
    (tmp_path / "their_broken_data.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "their_data", raising=False)


def test_a_tuple_of_arrays() -> None:
    splits = CustomSource(kind="their_data:arrays", parameters={"n": 4}).load()
    assert splits.train.inputs.shape == (4, 3, 2, 2)
    assert splits.train.inputs.dtype == np.float32
    assert splits.train.classes == splits.test.classes == 3


def test_splits_of_any_sample_shape() -> None:
    assert CustomSource(kind="their_data:vectors").load().train.input_shape == (7,)


@pytest.mark.parametrize(
    ("kind", "parameters", "path", "says"),
    [
        ("their_dat:arrays", {}, "data.kind", "their_dat"),
        ("their_data:arays", {}, "data.kind", "arays"),
        ("their_broken_data:x", {}, "data.kind", "ZeroDivisionError"),
        ("their_data:number", {}, "data.kind", "not callable"),
        ("their_data:nothing", {}, "data.kind", "NoneType"),
        ("their_data:lists", {}, "data.kind", "NumPy arrays"),
        ("their_data:arrays", {"m": 4}, "data.parameters", "'m'"),
        ("their_data:arrays", {"high": 255}, "data.kind", "[0, 255]"),
        ("their_data:arrays", {"test_label": -1}, "data.kind", "-1..-1"),
    ],
)
def test_mistakes(
    kind: str, parameters: dict[str, object], path: str, says: str, refused: Callable[..., str]
) -> None:
    assert says in refused(path, CustomSource(kind=kind, parameters=parameters).load)


def test_what_the_callable_raises_is_passed_on() -> None:
    with pytest.raises(KeyError, match="my own mistake"):
        CustomSource(kind="their_data:breaks").load()


def test_a_kind_without_a_colon_is_not_custom() -> None:
    with pytest.raises(ValidationError):
        CustomSource(kind="their_data.arrays")
