"""Studies run: every cell by itself, none of them twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedleak
from fedleak.captures import CaptureStore, StudyLayout
from fedleak.errors import QuorumLost, ResourceError, ScenarioError
from fedleak.reporting.study import read_study
from fedleak.scenario import load_scenario, load_study
from fedleak.studies import Progress, audit_study, resume, run_study, running

Tiny = Callable[..., dict[str, Any]]
CELLS = ["client.batch_size=1", "client.batch_size=2"]


def stamps(place: Path) -> dict[str, int]:
    """When each capture and result below a directory was written."""
    return {
        str(path.relative_to(place)): path.stat().st_mtime_ns
        for path in (place / "cells").rglob("*")
        if path.is_file()
    }


def outcome(place: Path, cell: str, repeat: int = 0) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(StudyLayout(place).outcome(cell, repeat).read_text())
    return content


def test_a_study_is_a_directory_of_ordinary_runs(tiny: Tiny, tmp_path: Path) -> None:
    told: list[Progress] = []
    study = load_study(tiny(repeats=2))
    place = run_study(study, runs=tmp_path, command="fedleak run x", on_run=told.append)
    assert place.parent == tmp_path and place.name.startswith("tiny-2")
    assert place.stat().st_mode & 0o777 == 0o700
    assert load_study(place / "scenario.toml").runs
    environment = json.loads((place / "environment.json").read_text())
    assert environment["command"] == "fedleak run x"
    for run in study.runs():
        directory = place / "cells" / run.cell.name / f"repeat-{run.repeat}"
        assert load_scenario(directory / "scenario.toml") == run.scenario
        assert CaptureStore(directory).rounds() == [1]
        assert (directory / "audit" / "results.parquet").exists()
        assert not (directory / "report").exists(), "pages are made when they are asked for"
        assert outcome(place, run.cell.name, run.repeat)["status"] == "done"
    assert [(p.done, p.total, p.failed, p.cell) for p in told] == [
        (0, 4, 0, CELLS[0]), (1, 4, 0, CELLS[1]), (2, 4, 0, CELLS[0]), (3, 4, 0, CELLS[1]),
        (4, 4, 0, ""),
    ]  # fmt: skip


def test_tables_among_values_of_a_matrix(tiny: Tiny, tmp_path: Path) -> None:
    """TOML puts tables behind values: cells are still found by what they are called."""
    long = {"kind": "mlp", "hidden": [8] * 40}
    matrix = {"model": [long], "client.batch_size": [1], "client.lr": [0.1, 0.2]}
    place = run_study(load_study(tiny(matrix=matrix)), directory=tmp_path / "study")
    results = read_study(place)
    assert [run.status for cell in results.cells for run in cell.runs] == ["done", "done"]


def test_the_first_repeat_is_the_run_of_the_scenario_alone(tiny: Tiny, tmp_path: Path) -> None:
    study = run_study(load_study(tiny()), directory=tmp_path / "study")
    raw = tiny(client={"batch_size": 2})
    del raw["matrix"]
    alone = fedleak.run(load_scenario(raw), directory=tmp_path / "alone")
    files = [d / "captures" / "round-0001" / "client-001.safetensors" for d in (
        alone, study / "cells" / CELLS[1] / "repeat-0"
    )]  # fmt: skip
    assert files[0].read_bytes() == files[1].read_bytes()


def test_nothing_is_written_where_a_cell_cannot_be(tiny: Tiny, tmp_path: Path) -> None:
    study = load_study(tiny(matrix={"model.kind": ["mlp", "lenet"]}))
    with pytest.raises(ScenarioError, match=r"\[cell model.kind=lenet\]"):
        run_study(study, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_failed_run_is_recorded_and_the_others_go_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = running.run_federation
    errors: list[BaseException] = [QuorumLost("too few came"), ZeroDivisionError("a bug")]

    def failing(scenario: Any, **more: Any) -> Path:
        if scenario.client.batch_size == 1 and errors:
            raise errors.pop(0)
        return run(scenario, **more)

    monkeypatch.setattr(running, "run_federation", failing)
    study = load_study(tiny(repeats=3))
    place = run_study(study, directory=tmp_path / "study")
    assert outcome(place, CELLS[0])["reason"] == "too few came"
    assert outcome(place, CELLS[0], 1)["reason"].splitlines()[-1] == "ZeroDivisionError: a bug"
    listed = [outcome(place, cell, k)["status"] for k in range(3) for cell in CELLS]
    assert listed == ["failed", "done", "failed", "done", "done", "done"]
    kept = stamps(place / "cells" / CELLS[1])
    resume(place)
    assert {outcome(place, cell, k)["status"] for k in range(3) for cell in CELLS} == {"done"}
    assert stamps(place / "cells" / CELLS[1]) == kept


def test_finished_runs_are_never_run_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = run_study(load_study(tiny()), directory=tmp_path / "study")
    before = stamps(place)
    layout = StudyLayout(place)
    # As a kill leaves it: one run without its outcome, one not begun.
    layout.outcome(CELLS[0], 0).unlink()
    asked: list[Path] = []
    run = running.run_federation

    def watched(scenario: Any, directory: Path) -> Path:
        asked.append(directory)
        return run(scenario, directory=directory)

    monkeypatch.setattr(running, "run_federation", watched)
    resume(place)
    assert asked == [], "its federation had ended, only the audit was asked again"
    shutil.rmtree(layout.run(CELLS[1], 0))
    layout.outcome(CELLS[1], 0).write_text("{ cut sh")
    resume(place)
    assert [path.name for path in asked] == ["repeat-0.partial"]
    captures = [name for name in before if CELLS[0] in name and "captures" in name]
    after = stamps(place)
    assert captures and all(after[name] == before[name] for name in captures)
    assert not list(place.rglob("*.partial"))


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_study_goes_on_where_it_was(tmp_path: Path, tiny: Tiny, blow: int) -> None:
    matrix = "{ 'client.lr' = [" + ", ".join(f"0.{i:03}" for i in range(1, 300)) + "] }"
    (tmp_path / "study.toml").write_text(
        f"""
        matrix = {matrix}
        data = {{ kind = "digits" }}
        model = {{ kind = "mlp" }}
        federation = {{ clients = 2 }}
        audit = {{ attacks = [{{ kind = "analytic" }}] }}
        """
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", "from fedleak.cli import main; main()"),
            *("run", "study.toml", "--out", "study"),
        ],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    place = tmp_path / "study"
    try:
        deadline = time.monotonic() + 120
        while len(list(place.glob("cells/*/*.json"))) < 2 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(blow)
        process.wait(20)
    finally:
        process.kill()
    done = list(place.glob("cells/*/*.json"))
    assert 2 <= len(done) < 299
    times = {path: path.stat().st_mtime_ns for path in done}
    first = load_study(place / "scenario.toml")
    left = first.cells[len(done) + 2].name
    enough = RuntimeError("far enough")

    def stop(state: Progress) -> None:
        if state.cell == left:
            raise enough

    with pytest.raises(RuntimeError, match="far enough"):
        resume(place, stop)
    assert len(list(place.glob("cells/*/*.json"))) == len(done) + 2
    assert {path: path.stat().st_mtime_ns for path in done} == times


def test_a_study_without_attacks_measures_the_model(tiny: Tiny, tmp_path: Path) -> None:
    place = run_study(load_study(tiny(audit={})), directory=tmp_path / "study")
    assert not (place / "cells" / CELLS[0] / "repeat-0" / "audit").exists()
    rows = running.aggregate(place)
    assert {row.metric for row in rows} == {
        "accuracy", "loss", "bytes-sent", "refused", "train-seconds",
    }  # fmt: skip


def test_further_attacks_are_added_to_every_run(tiny: Tiny, tmp_path: Path) -> None:
    from fedleak.auditor.requests import parse_tasks

    place = run_study(load_study(tiny()), directory=tmp_path / "study")
    settings = ["gs.iterations=2", "gs.restarts=1"]
    audit_study(place, lambda run: parse_tasks(run, ["gs"], [], settings))
    rows = running.aggregate(place)
    (added,) = {row.attack for row in rows if row.attack and row.attack.startswith("gs")}
    assert added == "gs restarts=1 iterations=2"
    assert {row.cell for row in rows if row.attack == added} == set(CELLS)
    assert {row.attack for row in rows} == {None, "analytic", added}


def test_captures_need_not_be_kept(tiny: Tiny, tmp_path: Path) -> None:
    kept = run_study(load_study(tiny()), directory=tmp_path / "kept")
    place = run_study(load_study(tiny(keep_captures=False)), directory=tmp_path / "study")
    assert list(kept.rglob("captures")) and not list(place.rglob("captures"))

    def values(directory: Path) -> list[tuple[str, str, float]]:
        found = running.aggregate(directory)
        return [(row.cell, row.metric, row.mean) for row in found if "seconds" not in row.metric]

    assert values(place) == values(kept)
    resume(place)
    assert values(place) == values(kept)
    with pytest.raises(ResourceError, match="keep_captures = false"):
        audit_study(place, lambda run: {})


def test_the_public_functions_take_studies(tiny: Tiny, tmp_path: Path) -> None:
    place = fedleak.run(fedleak.load_study(tiny()), directory=tmp_path / "study")
    assert fedleak.report(place) == place / "report" / "index.html"
    with pytest.raises(ResourceError, match="is a study; its runs are audited as it runs"):
        fedleak.audit(place)


def test_what_is_no_study(tmp_path: Path) -> None:
    for function in (resume, lambda place: audit_study(place, lambda _: {})):
        with pytest.raises(ResourceError, match="is no study's directory"):
            function(tmp_path)
