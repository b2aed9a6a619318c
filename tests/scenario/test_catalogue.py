"""What ``fedleak list`` is made from."""

from __future__ import annotations

from fedleak.attacks import ATTACKS
from fedleak.scenario.catalogue import catalogue
from server_strategies.aggregation import AGGREGATIONS


def test_every_component_stands_there_with_a_sentence() -> None:
    entries = catalogue()
    assert set(entries) == {
        "data", "partition", "model", "init", "server", "defense", "attack", "measure",
        "score", "aggregation",
    }  # fmt: skip
    assert [entry.kind for entry in entries["attack"]] == [a.kind_name() for a in ATTACKS]
    assert {entry.kind for entry in entries["aggregation"]} == set(AGGREGATIONS)
    assert entries["data"][-1].kind == "module:callable"
    assert entries["model"][-1].kind == "module:Class"
    for group in entries.values():
        for entry in group:
            assert entry.summary.endswith("."), entry
            assert "`" not in entry.summary
            assert "\n" not in entry.summary


def test_every_parameter_is_described() -> None:
    for table, group in catalogue().items():
        for entry in group:
            for parameter in entry.parameters:
                assert parameter.description, (table, entry.kind, parameter.name)


def test_defaults_are_spelt_as_in_a_scenario() -> None:
    entries = catalogue()
    gs = {
        p.name: p.default for p in next(e for e in entries["attack"] if e.kind == "gs").parameters
    }
    assert gs["lr"] == "0.1"
    assert gs["initialisation"] == '"uniform"'
    npz = next(entry for entry in entries["data"] if entry.kind == "npz")
    assert {p.name: p.default for p in npz.parameters}["path"] is None
    qfedavg = next(entry for entry in entries["aggregation"] if entry.kind == "qfedavg")
    assert {p.name: p.default for p in qfedavg.parameters} == {
        "parameters.client_learning_rate": None,
        "parameters.q": "0.1",
    }
