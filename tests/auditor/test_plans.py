"""Measured batching plans are kept with the run and used again."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedleak.auditor.plans import recorded_plans
from fedleak.captures import RunLayout
from fedleak.gradients.batching import PLANS, Plan


@pytest.fixture(autouse=True)
def _own_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in list(PLANS):
        monkeypatch.delitem(PLANS, key)


def test_a_measured_plan_is_used_by_the_next_process(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    with recorded_plans(layout):
        PLANS["case"] = Plan("loop", 3)
    PLANS.clear()  # another process
    with recorded_plans(layout):
        assert {"case": Plan("loop", 3)} == PLANS


def test_the_first_record_wins(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    with recorded_plans(layout):
        PLANS["case"] = Plan("loop", 3)
        with recorded_plans(layout):  # another actor, meanwhile
            PLANS["case"] = Plan("vmap", 8)
        PLANS["case"] = Plan("loop", 3)
    PLANS.clear()
    with recorded_plans(layout):
        assert {"case": Plan("vmap", 8)} == PLANS


def test_a_damaged_record_is_measured_anew(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    layout.plans.parent.mkdir()
    layout.plans.write_text('{"case": {"batching"')
    with recorded_plans(layout):
        assert PLANS == {}
        PLANS["case"] = Plan("explicit", 1)
    PLANS.clear()
    with recorded_plans(layout):
        assert {"case": Plan("explicit", 1)} == PLANS
