"""Running a study: every cell by itself, each run at most once."""

from __future__ import annotations

import json
import shutil
import time
import tomllib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedleak.auditor import audit, check_attacks
from fedleak.captures import RunLayout, StudyLayout, write_atomic
from fedleak.errors import FedLeakError, ResourceError
from fedleak.federation import run as run_federation
from fedleak.federation.resources import check_resources
from fedleak.scenario import Scenario, Study, StudyRun, check_cells, load_study
from fedleak.scenario.run_directory import new_directory, write_environment
from fedleak.studies.aggregation import aggregate
from server_strategies.app import OnRound


@dataclass(frozen=True)
class Progress:
    """How far a study is, told before its first run and after each.

    Attributes:
        directory: The study's directory.
        done: Finished runs, those of earlier calls included.
        total: Runs in all.
        failed: How many of the finished failed.
        cell: The cell that is run next; empty at the end.
    """

    directory: Path
    done: int
    total: int
    failed: int
    cell: str


OnRun = Callable[[Progress], None]


def run(
    scenario: Scenario | Study,
    *,
    runs: str | Path = "runs",
    directory: str | Path | None = None,
    on_round: OnRound | None = None,
) -> Path:
    """Run a scenario's federation, or a whole study: federations, audits, table.

    Args:
        scenario: What to run.
        runs: Where the directory ``<name>-<utc time>`` is made.
        directory: Exact directory to make instead; must not exist.
        on_round: Called after each round of a scenario with what was measured.

    Returns:
        The run directory, to be audited; or the study's, which is finished.

    Raises:
        Whatever `fedleak.federation.run` or `run_study` raises.
    """
    if isinstance(scenario, Study):
        return run_study(scenario, runs=runs, directory=directory)
    return run_federation(scenario, runs=runs, directory=directory, on_round=on_round)


def run_study(
    study: Study,
    *,
    runs: str | Path = "runs",
    directory: str | Path | None = None,
    command: str = "",
    on_run: OnRun | None = None,
) -> Path:
    """Run all cells of a study and aggregate what they gave.

    Everything that can be refused is refused before the study's directory is made. A run
    that fails later is recorded with its reason, and the others go on.

    Args:
        study: What to run.
        runs: Where the directory ``<name>-<utc time>`` is made.
        directory: Exact directory to make instead; must not exist.
        command: The command line that asks for the study, kept for its report.
        on_run: Called before the first run and after each.

    Returns:
        The study's directory.

    Raises:
        ScenarioError: The data of a cell are not there, or model or attack do not fit.
        ResourceError: A cell needs more memory or disk than there is, or the directory
            exists.
    """
    target = Path(runs if directory is None else directory)
    # As it will be read again: TOML puts tables behind values, and cells are named in order.
    document = tomli_w.dumps(dict(study.document))
    study = load_study(tomllib.loads(document))
    check_cells(study, lambda prepared: check_resources(prepared, target))
    root = new_directory(study.name, Path(runs), None if directory is None else Path(directory))
    layout = StudyLayout(root)
    layout.cells.mkdir()
    write_environment(layout.environment, command=command)
    write_atomic(layout.scenario, document.encode())
    _run_missing(study, layout, on_run)
    return root


def resume(directory: str | Path, on_run: OnRun | None = None) -> Path:
    """Go on with a study that was stopped. Finished runs are kept; failed ones run again.

    Raises:
        ResourceError: No study was started there.
        ScenarioError: Its scenario does not hold any longer.
    """
    layout = _layout(directory)
    study = load_study(layout.scenario)
    check_cells(study)
    _run_missing(study, layout, on_run)
    return layout.root


def audit_study(
    directory: str | Path,
    request_of: Callable[[Path], Mapping[str, Any]],
    on_run: OnRun | None = None,
) -> None:
    """Audit every finished run of a study with further attacks, and aggregate anew.

    Args:
        directory: The study's directory.
        request_of: Gives, for a run directory, what `fedleak.auditor.audit` is asked for.
        on_run: Called before the first run and after each.

    Raises:
        ResourceError: No study was started there, it kept no captures, or none of its
            runs is finished.
        Whatever `audit` raises.
    """
    layout = _layout(directory)
    study = load_study(layout.scenario)
    if not study.keep_captures:
        raise ResourceError(f"{directory} has keep_captures = false: nothing is left to audit")
    done = [run for run in study.runs() if _status(layout, run) == "done"]
    if not done:
        raise ResourceError(f"no run of {directory} is finished; `fedleak run {directory}` goes on")
    places = [layout.run(each.cell.name, each.repeat) for each in done]
    requests = [(place, request_of(place)) for place in places]
    check_attacks(requests)
    for number, (each, (place, request)) in enumerate(zip(done, requests, strict=True)):
        if on_run is not None:
            on_run(Progress(layout.root, number, len(done), 0, each.cell.name))
        audit(place, **request, recorded=True)
    if on_run is not None:
        on_run(Progress(layout.root, len(done), len(done), 0, ""))
    aggregate(layout.root)


def _layout(directory: str | Path) -> StudyLayout:
    layout = StudyLayout(Path(directory))
    if not layout.exists:
        raise ResourceError(
            f"{directory} is no study's directory; `fedleak run STUDY.toml` makes one"
        )
    return layout


def _run_missing(study: Study, layout: StudyLayout, on_run: OnRun | None) -> None:
    everything = list(study.runs())
    todo = [each for each in everything if _status(layout, each) != "done"]
    failed = 0
    for number, each in enumerate([*todo, None]):
        done = len(everything) - len(todo) + number
        if on_run is not None:
            name = "" if each is None else each.cell.name
            on_run(Progress(layout.root, done, len(everything), failed, name))
        if each is not None:
            failed += not _run(each, layout, study.keep_captures)
    aggregate(layout.root)


def _run(run: StudyRun, layout: StudyLayout, keep_captures: bool) -> bool:
    """Run one repeat of a cell and write down what became of it; True if it is done."""
    place = layout.run(run.cell.name, run.repeat)
    started = time.perf_counter()
    status, reason = "done", ""
    try:
        if not place.exists():
            # A federation cannot be taken up where it was killed; under its own name there
            # are whole ones only.
            unfinished = place.with_name(f"{place.name}.partial")
            shutil.rmtree(unfinished, ignore_errors=True)
            run_federation(run.scenario, directory=unfinished)
            unfinished.rename(place)
        if run.scenario.audit.tasks:
            audit(place)
    except FedLeakError as error:
        status, reason = "failed", str(error)
    except Exception:
        status, reason = "failed", traceback.format_exc()
    outcome = {
        "status": status,
        "reason": reason,
        "seconds": round(time.perf_counter() - started, 3),
    }
    write_atomic(layout.outcome(run.cell.name, run.repeat), json.dumps(outcome, indent=1).encode())
    if status == "done" and not keep_captures:
        shutil.rmtree(RunLayout(place).captures)
    return status == "done"


def _status(layout: StudyLayout, run: StudyRun) -> str | None:
    try:
        outcome = json.loads(layout.outcome(run.cell.name, run.repeat).read_bytes())
        return str(outcome["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there yet, or damaged: run anew
