"""In a deployment only who opted in is scored, and the report says so."""

from __future__ import annotations

import json

import pytest

from fedleak import audit, load_scenario, run
from fedleak.auditor.notes import read_notes
from fedleak.captures import RunLayout
from fedleak.scenario import to_toml

SCENARIO = {
    "data": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [16]},
    "federation": {"rounds": 1, "clients": 3},
    "audit": {"attacks": [{"kind": "analytic"}]},
}


def deployed(tmp_path, audit_data, opted_in, refused=()):
    """A run directory as a deployment leaves it."""
    layout = RunLayout(run(load_scenario(SCENARIO), directory=tmp_path / "run"))
    federation = {**SCENARIO["federation"], "engine": "deployment", "audit_data": audit_data}
    layout.scenario.write_text(to_toml(load_scenario({**SCENARIO, "federation": federation})))
    clients = {f"client-{number:03d}": {"audit_data": number in opted_in} for number in range(3)}
    record = {"clients": clients, "refused": dict(refused)}
    layout.participants.write_text(json.dumps(record))
    return layout


@pytest.mark.parametrize(
    ("audit_data", "opted_in", "scored"),
    [
        (True, {0, 1, 2}, {"client-000", "client-001", "client-002"}),
        (True, {1}, {"client-001"}),
        (True, set(), set()),
        (False, {0, 1, 2}, set()),
    ],
)
def test_scored_is_who_opted_in_to_a_data_set_that_is_for_it(
    tmp_path, audit_data, opted_in, scored
):
    layout = deployed(tmp_path, audit_data, opted_in)
    rows = audit(layout.root).rows
    assert {row["client"] for row in rows} == scored
    originals = {path.name.split(".")[1] for path in layout.root.glob("audit/originals/*")}
    assert originals == scored
    assert len(list(layout.cells.glob("*.json"))) == 3, "all are attacked"
    (note,) = read_notes(layout) or [""]
    assert ("no truth" in note) == (len(scored) < 3)
    for number in range(3):
        name = f"client-{number:03d}"
        assert (name in note.partition("is scored: of ")[2]) == (name not in scored)


def test_who_was_refused_is_told(tmp_path):
    reason = "client-002 has fedleak 0.0.9, the server has fedleak 0.1.0: install the same"
    layout = deployed(tmp_path, True, {0, 1, 2}, {"node-5": reason})
    audit(layout.root)
    assert read_notes(layout) == (f"Refused: {reason}.",)
