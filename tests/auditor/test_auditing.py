"""Auditing a run: which cells run, what is kept, what is judged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from fedleak.attacks import GS, Attack
from fedleak.auditor import Progress, audit, cells
from fedleak.auditor.observe import observe
from fedleak.auditor.subject import subject_of_scenario
from fedleak.captures import CaptureStore, RunLayout
from fedleak.captures.ledger import SCHEMA
from fedleak.errors import AttackFailed, CaptureError, ResourceError, ScenarioError
from fedleak.records import Observation, Reconstruction
from fedleak.scenario import Prepared, Scenario

Scripted = Any
CAPTURES = [(round, client) for round in (1, 2) for client in ("client-000", "client-001")]


def outcomes(directory: Path) -> list[dict[str, Any]]:
    paths = sorted(RunLayout(directory).cells.glob("*.json"))
    return [json.loads(path.read_text()) for path in paths]


def test_every_capture_is_attacked_once(directory: Path, scripted: Scripted) -> None:
    told: list[tuple[int, int, str, int]] = []
    audited = audit(
        directory,
        attacks=[scripted()],
        on_cell=lambda state: told.append(
            (state.done, state.total, state.outcome.client, state.outcome.round)
        ),
    )
    assert told == [(n, 4, client, round) for n, (round, client) in enumerate(CAPTURES, 1)]
    assert len(set(scripted.calls)) == 4, "each cell has its own random stream"
    assert [(o["round"], o["client"], o["status"], o["samples"]) for o in outcomes(directory)] == [
        (round, client, "done", 3) for round, client in CAPTURES
    ]
    assert len(audited.rows) == 4 * (3 * 4 + 2), "four scores of each sample, two of the client"


def test_finished_cells_are_never_run_again(directory: Path, scripted: Scripted) -> None:
    first = audit(directory, attacks=[scripted()])
    stamps = {path: path.stat().st_mtime_ns for path in RunLayout(directory).cells.iterdir()}
    second = audit(directory, attacks=[scripted()], on_cell=lambda *_: pytest.fail("a cell ran"))
    assert len(scripted.calls) == 4
    assert stamps == {
        path: path.stat().st_mtime_ns for path in RunLayout(directory).cells.iterdir()
    }
    assert [row["value"] for row in first.rows if row["metric"] == "mse"] == [
        row["value"] for row in second.rows if row["metric"] == "mse"
    ]


def test_other_parameters_are_other_cells(directory: Path, scripted: Scripted) -> None:
    audit(directory, attacks=[scripted()])
    audited = audit(directory, attacks=[scripted(variant=1)])
    assert len(scripted.calls) == 8
    assert len({row["cell"] for row in audited.rows}) == 8
    assert [o["parameters"]["variant"] for o in outcomes(directory)].count(1) == 4


def test_a_choice_of_rounds_and_clients(directory: Path, scripted: Scripted) -> None:
    audit(directory, attacks=[scripted()], rounds=[2, 2], clients=["client-001"])
    assert [(o["round"], o["client"]) for o in outcomes(directory)] == [(2, "client-001")]
    assert len(scripted.calls) == 1
    audit(directory, attacks=[scripted()], rounds=[2])
    assert [o["client"] for o in outcomes(directory)] == ["client-000", "client-001"]
    assert len(scripted.calls) == 2


class Killed(BaseException):
    """What stops a process between any two lines."""


def test_a_killed_audit_goes_on_where_it_was(directory: Path, scripted: Scripted) -> None:
    def kill(state: Progress) -> None:
        if state.done == 2:
            raise Killed

    with pytest.raises(Killed):
        audit(directory, attacks=[scripted()], on_cell=kill)
    assert len(scripted.calls) == 2
    assert not RunLayout(directory).results.exists()
    audited = audit(directory, attacks=[scripted()])
    assert len(scripted.calls) == 4
    assert len({row["cell"] for row in audited.rows}) == 4


def test_a_cell_without_its_outcome_is_not_finished(
    directory: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = cells.write_atomic

    def dies(path: Path, content: bytes) -> None:
        if path.suffix == ".json" and len(scripted.calls) == 2:
            raise Killed
        write(path, content)

    monkeypatch.setattr(cells, "write_atomic", dies)
    with pytest.raises(Killed):
        audit(directory, attacks=[scripted()])
    assert len(list(RunLayout(directory).cells.glob("*.safetensors"))) == 2
    monkeypatch.undo()
    monkeypatch.setattr(type(scripted()), "script", staticmethod(nothing_found), raising=False)
    monkeypatch.setattr(type(scripted()), "calls", [])
    audit(directory, attacks=[scripted()])
    assert len(scripted.calls) == 3


def nothing_found(observation: Observation) -> Reconstruction:
    return Reconstruction(torch.zeros(0, *observation.input_shape), None, torch.zeros(0))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AttackFailed("every candidate diverged"), "every candidate diverged"),
        (RuntimeError("CUDA error"), "Traceback"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_failed_attack_is_recorded_and_the_others_go_on(
    directory: Path,
    scripted: Scripted,
    fails: Callable[[Exception], None],
    error: Exception,
    reason: str,
) -> None:
    fails(error)
    audited = audit(directory, attacks=[scripted()])
    recorded = outcomes(directory)
    assert [o["status"] for o in recorded] == ["failed", "done", "done", "done"]
    assert reason in recorded[0]["reason"]
    failed = recorded[0]["cell"]
    assert failed not in {row["cell"] for row in audited.rows}
    assert not (RunLayout(directory).cells / f"{failed}.safetensors").exists()
    audit(directory, attacks=[scripted()])
    assert len(scripted.calls) == 4, "a failed cell is a finished one"


def test_a_cell_that_breaks_those_attacked_with_it_is_found(
    directory: Path, scenario: Scenario, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both cells of a round go together; whenever the first is among them, it breaks all."""
    first = observe(
        CaptureStore(directory).load(1, "client-000"), subject_of_scenario(scenario)
    ).update
    sizes = []

    def each(
        self: Scripted, observations: list[Observation], seeds: list[int], progress: object
    ) -> Iterator[object]:
        sizes.append(len(observations))
        for observation in observations:
            if all(torch.equal(observation.update[name], first[name]) for name in first):
                raise RuntimeError("out of memory")
        yield {index: self.script(observation) for index, observation in enumerate(observations)}

    monkeypatch.setattr(scripted, "appetite", 2)
    monkeypatch.setattr(scripted, "reconstruct_each", each)
    audit(directory, attacks=[scripted()])
    assert sizes == [2, 1, 1, 2]
    recorded = outcomes(directory)
    assert [o["status"] for o in recorded] == ["failed", "done", "done", "done"]
    assert "out of memory" in recorded[0]["reason"]


def test_how_far_an_attack_is_can_be_watched(directory: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    attack = GS(iterations=5, restarts=1)
    audit(directory, attacks=[attack], rounds=[1], on_step=lambda *step: steps.append(step))
    assert steps == [("gs", iteration, 5) for iteration in range(1, 6)], "both clients together"


def test_an_unsupported_attack_is_recorded_and_not_run(
    directory: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted, "refusal", "needs a convolution")
    asked = [scripted(), *scenario_attacks()]
    audited = audit(directory, attacks=asked, rounds=[1], recorded=True)
    assert scripted.calls == []
    by_attack = {(o["attack"], o["status"], o["reason"]) for o in outcomes(directory)}
    assert by_attack == {
        ("scripted", "unsupported", "needs a convolution"),
        ("analytic", "done", ""),
    }
    assert {row["attack"] for row in audited.rows} == {"analytic"}


def test_a_named_attack_that_cannot_work_is_refused_before_anything_runs(
    directory: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted, "refusal", "needs a convolution")
    with pytest.raises(ScenarioError) as caught:
        audit(directory, attacks=[*scenario_attacks(), scripted()])
    assert [str(p) for p in caught.value.problems] == ["--attack scripted: needs a convolution"]
    assert not RunLayout(directory).cells.exists()


def test_one_capture_that_it_can_work_on_is_enough(
    directory: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([*["not on this one"] * 3, None, *["not on this one"] * 3, None])
    monkeypatch.setattr(scripted, "unsupported", lambda *_: next(answers))
    audit(directory, attacks=[scripted()])
    assert [o["status"] for o in outcomes(directory)] == ["unsupported"] * 3 + ["done"]


def test_scores_outlive_an_audit_that_knows_no_truth(
    directory: Path, scripted: Scripted, scenario: Scenario
) -> None:
    known = subject_of_scenario(scenario)
    blind = replace(known, truth=lambda round, client: None)
    scored = audit(directory, attacks=[scripted()], subject=known)
    audit(directory, attacks=[scripted(variant=1)], subject=blind, rounds=[1])
    table = pq.read_table(RunLayout(directory).results).to_pylist()
    assert {row["cell"] for row in table} == {row["cell"] for row in scored.rows}
    assert len(table) == len(scored.rows)


def test_a_failure_is_told_in_a_sentence_wherever_it_is_raised(
    directory: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gives_up(*_: object) -> Iterator[Any]:
        raise AttackFailed("no candidate is left")
        yield

    monkeypatch.setattr(scripted, "reconstruct_each", gives_up)
    audit(directory, attacks=[scripted()], rounds=[1])
    assert {(o["status"], o["reason"]) for o in outcomes(directory)} == {
        ("failed", "no candidate is left")
    }


def scenario_attacks() -> list[Attack]:
    from fedleak.attacks import Analytic

    return [Analytic()]


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (torch.full((3, 1, 8, 8), torch.nan), "not finite"),
        (torch.full((3, 1, 8, 8), torch.inf), "not finite"),
        (torch.zeros(3, 64), r"samples of shape (64,), the data has (1, 8, 8)"),
    ],
)
def test_what_is_no_reconstruction_is_a_failure(
    directory: Path,
    scripted: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    inputs: torch.Tensor,
    reason: str,
) -> None:
    made = Reconstruction(inputs, None, torch.zeros(3))
    monkeypatch.setattr(scripted, "script", staticmethod(lambda _: made))
    audited = audit(directory, attacks=[scripted()])
    assert audited.rows == ()
    assert all(o["status"] == "failed" and reason in o["reason"] for o in outcomes(directory))


def test_the_ledger(directory: Path, scripted: Scripted) -> None:
    audited = audit(directory, attacks=[scripted()])
    table = pq.read_table(RunLayout(directory).results)
    assert table.schema.equals(SCHEMA)
    assert table.schema.names == [
        "cell", "round", "client", "attack", "sample", "match", "metric", "value", "layer",
        "measure", "low", "high",
    ]  # fmt: skip
    assert table.num_rows == len(audited.rows)
    for written, row in zip(table.to_pylist(), audited.rows, strict=True):
        same = written["value"] == row["value"] or math.isnan(row["value"])
        assert same
        only_measures = {"measure": None, "low": None, "high": None}
        assert {**written, "value": 0} == {**row, **only_measures, "value": 0}
    assert set(table["metric"].to_pylist()) == {
        "mse", "psnr", "ssim", "label-accuracy", "leakage-budget", "leakage-excess",
    }  # fmt: skip
    assert set(table["sample"].to_pylist()) == {0, 1, 2}


def test_a_run_without_scores_still_has_a_ledger(
    directory: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted, "refusal", "never")
    assert audit(directory, attacks=[scripted()], recorded=True).rows == ()
    assert pq.read_table(RunLayout(directory).results).schema.equals(SCHEMA)


def add_to_scenario(directory: Path, text: str) -> None:
    path = RunLayout(directory).scenario
    before = path.read_text()
    assert before.count("expect = []\n") == 1
    path.write_text(before.replace("expect = []\n", "") + text)


EXPECT = """
[[expect]]
metric = "psnr"
attack = "analytic"
aggregate = "max"
comparison = "{comparison}"
value = {value}
source = "by hand"
"""


@pytest.mark.parametrize(("comparison", "value", "met"), [(">=", 60.0, True), ("<=", 20.0, False)])
def test_expectations_are_judged(directory: Path, comparison: str, value: float, met: bool) -> None:
    add_to_scenario(directory, EXPECT.format(comparison=comparison, value=value))
    (verdict,) = audit(directory).verdicts
    assert verdict.met is met
    assert verdict.measured is not None
    assert verdict.measured > 60
    (written,) = json.loads(RunLayout(directory).expectations.read_text())
    assert written["met"] is met
    assert written["measured"] == verdict.measured
    assert written["value"] == value
    assert written["source"] == "by hand"


def test_other_parameters_and_attacks_leave_expectations_alone(
    directory: Path, scripted: Scripted
) -> None:
    from fedleak.attacks import Analytic

    # Of all attacks, and a mean: any further score would change it.
    text = EXPECT.format(comparison=">=", value=0).replace('attack = "analytic"', "")
    add_to_scenario(directory, text.replace('"max"', '"mean"'))
    (alone,) = audit(directory).verdicts
    scored = {row["cell"] for row in audit(directory).rows}
    for other in (scripted(), Analytic(tolerance=0.3)):
        audited = audit(directory, attacks=[other])
        assert audited.verdicts == (alone,)
    assert {row["cell"] for row in audited.rows} > scored


def test_an_expectation_of_what_was_not_audited_is_a_miss(
    directory: Path, scripted: Scripted
) -> None:
    add_to_scenario(directory, EXPECT.format(comparison=">=", value=0))
    (verdict,) = audit(directory, attacks=[scripted()]).verdicts
    assert verdict.measured is None
    assert not verdict.met


def test_a_scenario_may_name_what_a_run_did_not_come_to(
    directory: Path, scripted: Scripted
) -> None:
    path = RunLayout(directory).scenario
    text = path.read_text().replace("rounds = 2", "rounds = 9", 1)
    path.write_text(text.replace("[audit]", "[audit]\nrounds = [2, 9]\nclients = [1]", 1))
    audit(directory, attacks=[scripted()])
    assert [(o["round"], o["client"]) for o in outcomes(directory)] == [(2, "client-001")]


@pytest.mark.parametrize(
    ("request_", "error", "said"),
    [
        ({"rounds": [7]}, ScenarioError, "no round 7 was captured; there are 1, 2"),
        ({"rounds": [0, 1]}, ScenarioError, "no round 0"),
        (
            {"clients": ["client-009"]},
            ScenarioError,
            "no capture of client-009; there are client-000",
        ),
        ({"attacks": []}, ScenarioError, "no attack or measure to run"),
    ],
)
def test_what_is_not_there_is_told(
    directory: Path, request_: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        audit(directory, **request_)


def test_a_directory_without_captures(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ResourceError, match="holds no captures: it has no manifest"):
            audit(place)
    (tmp_path / "manifest.json").write_text('{"format": 1, "rounds": {}}')
    with pytest.raises(ScenarioError, match=r"has no scenario\.toml; name the model"):
        audit(tmp_path)


def test_damaged_results_are_named(directory: Path, scripted: Scripted) -> None:
    audit(directory, attacks=[scripted()])
    folder = RunLayout(directory).cells
    first = sorted(folder.glob("*.safetensors"))[0]
    whole = first.read_bytes()
    first.write_bytes(whole[:40])
    with pytest.raises(
        CaptureError, match=rf"{first.name} cannot be read .* the cell is run again"
    ):
        audit(directory, attacks=[scripted()])
    first.write_bytes(whole)
    outcome = first.with_suffix(".json")
    outcome.write_text(outcome.read_text()[:30])
    with pytest.raises(CaptureError, match=rf"{outcome.name} cannot be read"):
        audit(directory, attacks=[scripted()])
    outcome.unlink()
    audit(directory, attacks=[scripted()])
    assert len(scripted.calls) == 5


def test_labels_are_observed_only_where_the_threat_model_grants_them(
    directory: Path, scripted: Scripted, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor | None] = []

    def look(observation: Observation) -> Reconstruction:
        seen.append(observation.labels)
        return Reconstruction(torch.zeros(1, 1, 8, 8), None, torch.zeros(1))

    monkeypatch.setattr(scripted, "script", staticmethod(look))
    audit(directory, attacks=[scripted()], rounds=[1])
    assert seen == [None, None]
    path = RunLayout(directory).scenario
    path.write_text(path.read_text().replace("known_labels = false", "known_labels = true"))
    audit(directory, attacks=[scripted()], rounds=[1])
    for client, labels in enumerate(seen[2:]):
        assert labels is not None
        assert labels.tolist() == sorted(prepared.truth(client, 1).labels.tolist())
    assert len(seen) == 4, "other threat models are other cells"
