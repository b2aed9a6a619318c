"""The budget against a table worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fedleak.measures.leakage_budget import leakage_budget


def score(sample: int, value: float, attack: str = "gs", **changes: Any) -> dict[str, Any]:
    row = {
        "cell": f"round-0001.a.{attack}", "round": 1, "client": "a", "attack": attack,
        "sample": sample, "match": sample, "metric": "psnr", "value": value, "layer": None,
    }  # fmt: skip
    return {**row, **changes}


def test_the_best_attack_counts_and_the_most_exposed_sample_stands_for_the_client() -> None:
    rows = [
        score(0, 10.0), score(1, 12.0), score(2, math.nan),
        score(0, 20.0, "dlg"), score(1, 40.0, "dlg"), score(1, 0.9, "dlg", metric="ssim"),
        score(-1, 99.0, "dlg"),
        score(0, 5.0, client="b"),
    ]  # fmt: skip
    budget, excess, alone, none = leakage_budget(rows)
    assert (budget["attack"], budget["sample"], budget["value"]) == ("dlg", 1, 40.0)
    assert excess["value"] == pytest.approx(40 - (20 + 40) / 2)
    assert (alone["client"], alone["value"], none["value"]) == ("b", 5.0, 0.0)


def test_an_exact_copy_has_no_finite_excess() -> None:
    budget, excess = leakage_budget([score(0, math.inf), score(1, 10.0)])
    assert budget["value"] == math.inf
    assert math.isnan(excess["value"])
