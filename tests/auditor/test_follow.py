"""Following a federation: each committed round is audited once, the last one ends it."""

from __future__ import annotations

import json
import threading

from fedleak import load_scenario, run
from fedleak.auditor import follow
from fedleak.captures import RunLayout, write_atomic

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

    layout.manifest.unlink()  # as before the first round
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

    federation = threading.Thread(target=federate)
    federation.start()
    result = follow(
        layout.root, on_audited=on_audited, on_cell=lambda state: cells.append(state.outcome.cell)
    )
    federation.join()
    assert audited == [{1}, {1, 2}, {1, 2, 3}]
    assert len(cells) == len(set(cells)) == 6
    assert {row["round"] for row in result.rows} == {1, 2, 3}
