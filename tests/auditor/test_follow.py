"""Following a federation: each committed round is audited once, until it ends."""

from __future__ import annotations

import json
import threading

import pytest

from fedleak import load_scenario, run
from fedleak.auditor import follow
from fedleak.captures import RunLayout, write_atomic
from fedleak.errors import CaptureError

SCENARIO = {
    "data": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [16]},
    "federation": {"rounds": 3, "clients": 2},
    "audit": {"attacks": [{"kind": "analytic"}]},
}


def test_rounds_are_audited_as_they_are_committed(tmp_path, monkeypatch):
    monkeypatch.setattr("fedleak.auditor.auditing._POLL_SECONDS", 0.01)
    layout = RunLayout(run(load_scenario(SCENARIO), directory=tmp_path / "run"))
    whole = json.loads(layout.manifest.read_text())

    def commit(rounds: int) -> None:
        some = {number: whole["rounds"][number] for number in list(whole["rounds"])[:rounds]}
        write_atomic(layout.manifest, json.dumps({**whole, "rounds": some}).encode())

    ending = layout.ended.read_bytes()
    layout.manifest.unlink()  # as before the first round
    layout.ended.unlink()
    audited: list[set[int]] = []
    cells: list[str] = []
    seen = threading.Event()

    def on_audited(result):
        audited.append({row["round"] for row in result.rows})
        seen.set()

    def federate() -> None:
        for rounds in (1, 2, 3):
            commit(rounds)
            assert seen.wait(30)
            seen.clear()
        write_atomic(layout.ended, ending)

    federation = threading.Thread(target=federate)
    federation.start()
    result = follow(
        layout.root, on_audited=on_audited, on_cell=lambda state: cells.append(state.outcome.cell)
    )
    federation.join()
    assert audited == [{1}, {1, 2}, {1, 2, 3}]
    assert len(cells) == len(set(cells)) == 6
    assert {row["round"] for row in result.rows} == {1, 2, 3}


def test_a_federation_that_ended_before_its_last_round_is_not_waited_for(tmp_path):
    layout = RunLayout(run(load_scenario(SCENARIO), directory=tmp_path / "run"))
    whole = json.loads(layout.manifest.read_text())
    first = {**whole, "rounds": {"1": whole["rounds"]["1"]}}
    write_atomic(layout.manifest, json.dumps(first).encode())
    result = follow(layout.root, on_audited=lambda audited: None)
    assert {row["round"] for row in result.rows} == {1}


def test_a_federation_that_ended_before_its_first_round_says_why(tmp_path):
    layout = RunLayout(run(load_scenario(SCENARIO), directory=tmp_path / "run"))
    layout.manifest.unlink()
    ending = {"error": "QuorumLost", "reason": "1 of 3 clients connected"}
    write_atomic(layout.ended, json.dumps(ending).encode())
    with pytest.raises(CaptureError, match="before its first round: 1 of 3 clients connected"):
        follow(layout.root, on_audited=lambda audited: None)
