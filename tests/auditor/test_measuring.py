"""Measures in an audit: what they are given, what becomes of what they give."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow.parquet as pq
import pytest
import torch

from fedleak.attacks import Attack
from fedleak.auditor import Subject, audit, cells
from fedleak.auditor.notes import read_notes
from fedleak.auditor.requests import parse_tasks
from fedleak.auditor.subject import subject_of_scenario
from fedleak.captures import RunLayout
from fedleak.errors import MeasureFailed, ScenarioError
from fedleak.measures import Evidence, Measure, Value
from fedleak.measures.measure import Measure as MeasureBase
from fedleak.records import Capture, Observation, Setting
from fedleak.scenario import Prepared, Scenario


class Probe(MeasureBase):
    """Gives what a test told it to, and keeps what it was given."""

    kind: Literal["probe"] = "probe"
    of: ClassVar[Literal["client", "round"]] = "client"
    needs: ClassVar[frozenset[Literal["truth", "data", "release"]]] = frozenset()
    metrics: ClassVar[tuple[str, ...]] = ("height",)
    script: ClassVar[Callable[[Evidence], Iterator[Value]]]
    given: ClassVar[list[Evidence]]
    refusal: ClassVar[str | None] = None

    def unsupported(self, setting: Setting) -> str | None:
        return type(self).refusal

    def measure(self, evidence: Evidence) -> Iterator[Value]:
        type(self).given.append(evidence)
        return type(self).script(evidence)


def heights(evidence: Evidence) -> Iterator[Value]:
    yield Value("height", 2.0, "fc1", 0)
    yield Value("height", 3.0, "fc2", low=2.5, high=3.5)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> type[Probe]:
    monkeypatch.setattr(Probe, "given", [], raising=False)
    monkeypatch.setattr(Probe, "script", staticmethod(heights), raising=False)
    return Probe


def outcomes(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted(RunLayout(directory).cells.glob("*.json"))]


def test_values_are_rows_of_the_results(directory: Path, probe: type[Probe]) -> None:
    rows = audit(directory, attacks=[], measures=[probe()]).rows
    assert len(rows) == 2 * 4
    table = pq.read_table(RunLayout(directory).results).to_pylist()
    first, second = table[:2]
    assert (first["measure"], first["attack"]) == ("probe", None)
    assert (first["metric"], first["value"], first["layer"]) == ("height", 2.0, "fc1")
    assert first["sample"] == 0 and math.isnan(first["low"])
    assert (second["sample"], second["low"], second["high"]) == (-1, 2.5, 3.5)


def test_a_measure_is_given_the_truth_and_the_data(
    directory: Path, probe: type[Probe], prepared: Prepared
) -> None:
    audit(directory, attacks=[], measures=[probe()], rounds=[2], clients=["client-001"])
    (evidence,) = probe.given
    truth = prepared.truth(1, 2)
    assert evidence.truth is not None and evidence.data is not None
    assert (evidence.truth.inputs == truth.inputs).all()
    assert len(evidence.data.train) == len(prepared.splits.train)


def test_an_attack_beside_it_is_given_neither(
    directory: Path, probe: type[Probe], scripted: type[Attack], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[bool, bool, bool]] = []
    observe = cells.observe

    def look(capture: Capture, subject: Subject, *more: Any) -> Observation:
        truth = subject.truth(capture.round, capture.client)
        shown.append((truth is None, subject.data is None, subject.release is None))
        return observe(capture, subject, *more)

    monkeypatch.setattr(cells, "observe", look)
    audit(directory, attacks=[scripted()], measures=[])
    assert shown == [(True, True, True)] * 4
    shown.clear()
    audit(directory, attacks=[], measures=[probe()])
    assert {known[:2] for known in shown} == {(False, False)}


def test_what_all_were_sent_is_measured_once_a_round(
    directory: Path, probe: type[Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "of", "round")
    audit(directory, attacks=[], measures=[probe()])
    assert [(o["round"], o["client"]) for o in outcomes(directory)] == [
        (1, "client-000"),
        (2, "client-000"),
    ]


def test_finished_measures_are_never_computed_again(directory: Path, probe: type[Probe]) -> None:
    first = audit(directory, attacks=[], measures=[probe()]).rows
    again = audit(directory, attacks=[], measures=[probe()]).rows
    assert len(probe.given) == 4
    assert [row["value"] for row in first] == [row["value"] for row in again]


def test_seeds_differ_from_cell_to_cell(directory: Path, probe: type[Probe]) -> None:
    audit(directory, attacks=[], measures=[probe()])
    assert len({evidence.seed for evidence in probe.given}) == 4


@pytest.mark.parametrize("need", ["truth", "data"])
def test_what_is_not_known_makes_a_measure_unsupported(
    directory: Path,
    probe: type[Probe],
    scenario: Scenario,
    monkeypatch: pytest.MonkeyPatch,
    need: Literal["truth", "data"],
) -> None:
    monkeypatch.setattr(probe, "needs", frozenset({need}))
    subject = replace(subject_of_scenario(scenario), truth=lambda *_: None, data=None)
    asked: dict[str, Any] = {"attacks": [], "measures": [probe()], "subject": subject}
    with pytest.raises(ScenarioError, match="--measure probe: it needs the"):
        audit(directory, **asked)
    assert not outcomes(directory)
    audit(directory, **asked, recorded=True)
    assert not probe.given
    assert {o["status"] for o in outcomes(directory)} == {"unsupported"}
    assert all("it needs the" in o["reason"] for o in outcomes(directory))


def test_a_measure_that_cannot_work_is_refused_or_recorded(
    directory: Path, probe: type[Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "refusal", "it reads images")
    with pytest.raises(ScenarioError, match="--measure probe: it reads images"):
        audit(directory, attacks=[], measures=[probe()])
    assert not outcomes(directory)
    audit(directory, attacks=[], measures=[probe()], recorded=True)
    assert {(o["status"], o["reason"]) for o in outcomes(directory)} == {
        ("unsupported", "it reads images")
    }


def test_one_that_fails_or_breaks_does_not_stop_the_others(
    directory: Path, probe: type[Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(evidence: Evidence) -> Iterator[Value]:
        if len(probe.given) == 1:
            raise MeasureFailed("no such direction")
        if len(probe.given) == 2:
            raise ZeroDivisionError
        return heights(evidence)

    monkeypatch.setattr(probe, "script", staticmethod(script))
    rows = audit(directory, attacks=[], measures=[probe()]).rows
    assert [o["status"] for o in outcomes(directory)] == ["failed", "failed", "done", "done"]
    assert outcomes(directory)[0]["reason"] == "no such direction"
    assert "ZeroDivisionError" in outcomes(directory)[1]["reason"]
    assert len(rows) == 4


def test_the_command_line_names_measures_and_their_parameters(directory: Path) -> None:
    asked = parse_tasks(directory, [], ["jacobian-sensitivity"], ["jacobian-sensitivity.samples=3"])
    (measure,) = asked["measures"]
    assert isinstance(measure, Measure) and measure.model_dump()["samples"] == 3
    assert asked["attacks"] == ()


def test_a_misspelt_measure_is_told_as_the_option(directory: Path) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_tasks(directory, [], ["jacobian"], [])
    (problem,) = caught.value.problems
    assert problem.path == "--measure"


def test_measures_draw_from_the_cells_stream(directory: Path, probe: type[Probe]) -> None:
    drawn = []

    def script(evidence: Evidence) -> Iterator[Value]:
        drawn.append(float(torch.rand(())))
        return iter(())

    probe.script = staticmethod(script)  # type: ignore[method-assign]
    audit(directory, attacks=[], measures=[probe()])
    assert len(set(drawn)) == 4


def test_release_is_what_the_client_sent_where_it_is_given_the_clients_samples(
    directory: Path, probe: type[Probe]
) -> None:
    """One step on the client's own samples: the very update that was captured."""
    apart = []

    def script(evidence: Evidence) -> Iterator[Value]:
        assert evidence.release is not None and evidence.truth is not None
        update = evidence.release(evidence.truth, 0)
        seen = evidence.observation.update
        apart.append(max(float((update[n] - seen[n].double()).abs().max()) for n in seen))
        return iter(())

    probe.script = staticmethod(script)  # type: ignore[method-assign]
    audit(directory, attacks=[], measures=[probe()])
    assert len(apart) == 4
    assert max(apart) < 1e-5


def test_what_a_reader_must_know_of_a_measure_is_noted(
    directory: Path, probe: type[Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MeasureBase, "note", property(lambda self: "Heights are doubtful."))
    audit(directory, attacks=[], measures=[probe()])
    assert read_notes(RunLayout(directory)) == ("Heights are doubtful.",)
