"""Texts from file to report: trained on, trapped, extracted and shown in words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedleak import audit, load_scenario, report, run

WORDS = [f"{a}{b}" for a in ("ba", "do", "ki", "lu", "me") for b in ("n", "r", "st", "ve", "xi")]


@pytest.fixture
def scenario(tmp_path: Path) -> dict[str, Any]:
    """Sixty texts of up to eight of twenty-five words."""
    drawn = random.Random(0)
    lines = [
        json.dumps({"text": " ".join(drawn.choices(WORDS, k=drawn.randint(3, 9))), "label": n % 2})
        for n in range(60)
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    return {
        "name": "texts",
        "data": {"kind": "text-jsonl", "train": str(tmp_path / "texts.jsonl"), "length": 8},
        "model": {"kind": "boenisch-text", "tokens": 30, "dimension": 12, "widths": [400]},
        "server": {"kind": "trap-weights", "scaling": 0.8},
        "federation": {"clients": 2},
        "client": {"batch_size": 8, "lr": 1.0},
        "audit": {"attacks": [{"kind": "analytic"}]},
    }


def test_texts_leak_and_are_shown_in_words(scenario: dict[str, Any], tmp_path: Path) -> None:
    directory = run(load_scenario(scenario), directory=tmp_path / "run")
    rows = audit(directory).rows
    recall = [row["value"] for row in rows if row["metric"] == "extraction-recall"]
    assert len(recall) == 2 and min(recall) >= 0.5
    assert not [row for row in rows if row["metric"] == "psnr" and row["value"] == row["value"]]
    page = report(directory).read_text()
    assert "90% of its tokens" in page
    assert "banban" not in page and any(f" {word} " in page for word in WORDS)


def test_the_answer_counts_texts(
    scenario: dict[str, Any], fedleak: Callable[..., Any], tmp_path: Path
) -> None:
    import tomli_w

    (tmp_path / "texts.toml").write_text(tomli_w.dumps(scenario))
    told = fedleak("run", "texts.toml", "--out", "run")
    assert told.code == 0
    assert "right tokens" in told.out and "PSNR" not in told.out
    assert max(len(line) for line in told.out.splitlines()) <= 80
    cells = json.loads(fedleak("report", "run", "--json").out)["cells"]
    assert all(cell["tokens_best"] == 1.0 and cell["psnr_best"] is None for cell in cells)


def test_pixels_and_tokens_do_not_mix(
    scenario: dict[str, Any], fedleak: Callable[..., Any]
) -> None:
    import tomli_w

    for change, words in (
        ({"model": {"kind": "mlp"}}, "are tokens 0.."),
        ({"data": {"kind": "digits"}}, "needs texts"),
        ({"model": {**scenario["model"], "tokens": 9}}, "index out of range"),
        ({"audit": {"attacks": [{"kind": "dlg"}]}}, "this model takes tokens"),
    ):
        Path("wrong.toml").write_text(tomli_w.dumps({**scenario, **change}))
        told = fedleak("validate", "wrong.toml")
        assert told.code == 2 and words in told.words, told.words
