"""Auditing a run: attack and measure what was captured, score it, check the expectations."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedleak.attacks import Attack
from fedleak.auditor.cells import Cell, Outcome, evidence_of, finished, setting_of, unmeasurable
from fedleak.auditor.executors import OnStep, execute
from fedleak.auditor.notes import write_notes
from fedleak.auditor.observe import observe
from fedleak.auditor.participants import Participants, participants
from fedleak.auditor.scoring import rows_of
from fedleak.auditor.subject import Subject, subject_of_scenario
from fedleak.captures import CaptureStore, RunLayout, StudyLayout, write_atomic
from fedleak.captures.ledger import read_ledger, write_ledger
from fedleak.errors import CaptureError, Problem, ResourceError, ScenarioError
from fedleak.measures import BUDGET_METRICS, Measure, leakage_budget
from fedleak.records import members_of, partition_name
from fedleak.scenario import Audit, Scenario, load_scenario
from fedleak.scenario.expectations import IN_STUDIES, Verdict, judge
from fedleak.scenario.naming import names_of

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Progress:
    """How far an audit is, told after each cell.

    Attributes:
        done: Cells finished by this audit.
        total: Cells that it has to run in all.
        outcome: The cell that was just finished.
        best_psnr: Best PSNR of any cell so far, in dB; None where nothing was scored.
    """

    done: int
    total: int
    outcome: Outcome
    best_psnr: float | None


OnCell = Callable[[Progress], None]


@dataclass(frozen=True)
class Audited:
    """What an audit gave.

    Attributes:
        rows: One per score or measured value, as in ``results.parquet``.
        verdicts: One per expectation of the scenario.
    """

    rows: tuple[dict[str, Any], ...]
    verdicts: tuple[Verdict, ...]


def audit(
    directory: str | Path,
    *,
    attacks: Sequence[Attack] | None = None,
    measures: Sequence[Measure] | None = None,
    rounds: Sequence[int] | None = None,
    clients: Sequence[str] | None = None,
    subject: Subject | None = None,
    settings: Audit | None = None,
    recorded: bool = False,
    on_plan: Callable[[int], None] | None = None,
    on_cell: OnCell | None = None,
    on_step: OnStep | None = None,
) -> Audited:
    """Attack, score and measure the captures of a run. Finished cells are not run again.

    Args:
        directory: A run directory.
        attacks: Attacks to run; default those of the run's scenario.
        measures: Measures to compute; default those of the run's scenario.
        rounds: Rounds to audit; default those of the scenario, else all.
        clients: Clients to audit, by name; default those of the scenario, else all.
        subject: Model and truth, for captures that no scenario describes.
        settings: Where cells run; default as the scenario says, else in this process.
        recorded: Whether ``attacks`` and ``measures`` that cannot work on any of the captures are
            recorded as unsupported, as those of the scenario are, instead of refused.
        on_plan: Called once, with the number of cells to run.
        on_cell: Called after each cell.
        on_step: Called now and then while cells run in this process.

    Returns:
        All scores of the run so far, and how its expectations fared.

    Raises:
        ResourceError: There is no such run directory.
        ScenarioError: Neither a scenario nor a subject is there, no attack or measure is
            named, a round or client that is named was not captured, or an attack cannot work.
        CaptureError: A capture is damaged, or there is none.
    """
    request = _request(directory, attacks, measures, rounds, clients, subject)
    if attacks is not None and not recorded:
        _refuse_unsupported([request])
    layout, scenario, store = request.layout, request.scenario, request.store
    subject, cells = request.subject, request.cells
    todo = [cell for cell in cells if not (layout.cells / f"{cell.name}.json").exists()]
    if on_plan is not None:
        on_plan(len(todo))
    settings = settings or (scenario.audit if scenario else Audit())
    fresh: dict[str, list[dict[str, Any]]] = {}
    best: float | None = None
    for done, outcome in enumerate(execute(todo, store, subject, settings, on_step), start=1):
        fresh[outcome.cell] = list(rows_of(layout, subject, outcome))
        for row in fresh[outcome.cell]:
            if row["metric"] == "psnr" and not math.isnan(row["value"]):
                best = row["value"] if best is None else max(best, row["value"])
        if on_cell is not None:
            on_cell(Progress(done, len(todo), outcome, best))
    rows: list[dict[str, Any]] = []
    earlier = read_ledger(layout.results)
    for outcome in finished(layout):
        scored = fresh.get(outcome.cell)  # empty where there was nothing to score
        if scored is None:
            # This time nobody may have said what the truth is.
            scored = list(rows_of(layout, subject, outcome)) or [
                row for row in earlier.get(outcome.cell, ()) if row["metric"] not in BUDGET_METRICS
            ]
        rows.extend(scored)
    rows.extend(leakage_budget(rows))
    write_ledger(layout.results, rows)
    write_notes(store, subject, cells, request.took_part)
    verdicts: tuple[Verdict, ...] = ()
    if scenario is not None and scenario.expect:
        # Scores of other attacks, or of the same with other parameters, do not count.
        tasks, names = scenario.audit.tasks, names_of(scenario.audit.tasks)
        counted = {
            cell.name: names[tasks.index(cell.task)] for cell in _plan(store, scenario, subject)
        }
        judged = [{**row, "attack": counted[row["cell"]]} for row in rows if row["cell"] in counted]
        verdicts = tuple(judge(expected, judged) for expected in scenario.expect)
        _write_verdicts(layout, verdicts)
    return Audited(tuple(rows), verdicts)


@dataclass(frozen=True)
class _Request:
    """What an audit is asked for, looked up: which cells of what, and all they need."""

    layout: RunLayout
    scenario: Scenario | None
    took_part: Participants | None
    subject: Subject
    store: CaptureStore
    cells: list[Cell]


def _request(
    directory: str | Path,
    attacks: Sequence[Attack] | None = None,
    measures: Sequence[Measure] | None = None,
    rounds: Sequence[int] | None = None,
    clients: Sequence[str] | None = None,
    subject: Subject | None = None,
    **_: Any,
) -> _Request:
    layout = RunLayout(Path(directory))
    if not layout.manifest.is_file():
        if StudyLayout(layout.root).exists:
            raise ResourceError(
                f"{layout.root} is a study; its runs are audited as it runs. "
                f"`fedleak audit {layout.root}` or `fedleak.studies.audit_study` adds attacks"
            )
        raise ResourceError(
            f"{layout.root} holds no captures: it has no {layout.manifest.name}. "
            "`fedleak run SCENARIO` makes a run directory and prints its path"
        )
    scenario = _scenario_of(layout)
    took_part = participants(layout, scenario) if scenario is not None else None
    if subject is None:
        if scenario is None:
            raise ScenarioError(
                Problem(
                    "",
                    f"{layout.root} has no scenario.toml; name the model that was trained, "
                    "for example --model task:Net --input-shape 3,32,32",
                )
            )
        subject = subject_of_scenario(scenario, took_part)
    store = CaptureStore(layout.root)
    cells = _plan(store, scenario, subject, attacks, measures, rounds, clients)
    return _Request(layout, scenario, took_part, subject, store, cells)


def follow(
    directory: str | Path, *, on_audited: Callable[[Audited], None], **request: Any
) -> Audited:
    """Audit a federation while it runs, each time it commits rounds.

    Returns after the last round of the run's scenario, or when the federation has ended
    before it. Captures of another app do not say which round is the last: there it goes
    on until it is interrupted.

    Args:
        directory: The run directory; it need not be there yet.
        on_audited: Called after each audit.
        request: As for `audit`.

    Raises:
        CaptureError: The federation ended before its first round.
        Whatever `audit` raises.
    """
    layout = RunLayout(Path(directory))
    audited: Audited | None = None
    audited_rounds: list[int] = []
    while True:
        ended = layout.ended.exists()  # looked at first: the rounds are complete then
        committed = CaptureStore(layout.root).rounds()
        if committed != audited_rounds:
            audited = audit(directory, **request)
            on_audited(audited)
            audited_rounds = committed
        if ended:
            if audited is None:
                reason = json.loads(layout.ended.read_bytes())["reason"]
                raise CaptureError(f"{layout.root} ended before its first round: {reason}")
            return audited
        time.sleep(_POLL_SECONDS)


def _scenario_of(layout: RunLayout) -> Scenario | None:
    return load_scenario(layout.scenario) if layout.scenario.exists() else None


def _plan(
    store: CaptureStore,
    scenario: Scenario | None,
    subject: Subject,
    attacks: Sequence[Attack] | None = None,
    measures: Sequence[Measure] | None = None,
    rounds: Sequence[int] | None = None,
    clients: Sequence[str] | None = None,
) -> list[Cell]:
    captured = {number: store.clients(number) for number in store.rounds()}
    if not captured:
        raise CaptureError(f"{store.layout.manifest}: no round was captured")
    known = {
        name for names in captured.values() for each in names for name in (each, *members_of(each))
    }
    # What the user names must be there. The scenario names what there may be: not every
    # client is asked in each round, and a run may have ended early.
    problems = []
    if missing := sorted(set(rounds or ()) - set(captured)):
        message = f"no round {_listed(missing)} was captured; there are {_listed(captured)}"
        problems.append(Problem("--rounds", message))
    if unknown := sorted(set(clients or ()) - known):
        message = f"no capture of {_listed(unknown)}; there are {_listed(sorted(known))}"
        problems.append(Problem("--clients", message))
    if problems:
        raise ScenarioError(problems)
    if scenario is not None:
        asked = scenario.audit
        attacks = asked.attacks if attacks is None else attacks
        measures = asked.measures if measures is None else measures
        rounds = asked.rounds if rounds is None else rounds
        if clients is None and asked.clients is not None:
            clients = [partition_name(partition) for partition in asked.clients]
    if not attacks and not measures:
        raise ScenarioError(
            Problem(
                "audit.attacks", "no attack or measure to run; name one, for example --attack gs"
            )
        )
    granted = scenario is not None and scenario.audit.known_labels
    cells = []
    for number, names in captured.items():
        if rounds is not None and number not in rounds:
            continue
        audited = [
            client
            for client in names
            if clients is None or any(name in clients for name in (client, *members_of(client)))
        ]
        for client in audited:
            labels = _labels(subject, number, client) if granted else None
            cells += [
                Cell(number, client, attack, subject.assumptions, labels)
                for attack in attacks or ()
            ]
        cells += [
            Cell(number, client, measure, subject.assumptions)
            for measure in measures or ()
            # What all were sent needs to be looked at only once.
            for client in (audited if measure.of == "client" else audited[:1])
        ]
    return list({cell.name: cell for cell in cells}.values())


def check_attacks(requests: Iterable[tuple[str | Path, Mapping[str, Any]]]) -> None:
    """Refuse attacks and measures that cannot work on a single capture that they are asked for.

    Args:
        requests: Run directories, each with what `audit` is asked for there.

    Raises:
        ScenarioError: Names them, each with the reason.
        Whatever `audit` raises before anything runs.
    """
    _refuse_unsupported(
        _request(directory, **request)
        for directory, request in requests
        if request.get("attacks") is not None
    )


def _refuse_unsupported(requests: Iterable[_Request]) -> None:
    reasons: dict[str, str | None] = {}
    named: dict[str, str] = {}
    for request in requests:
        for cell in request.cells:
            if reasons.get(cell.settings, "") is not None:
                flag = "--attack" if isinstance(cell.task, Attack) else "--measure"
                named[cell.settings] = f"{flag} {cell.task.kind}"
                reasons[cell.settings] = _refusal(cell, request.store, request.subject)
    problems = [
        Problem(named[settings], reason)
        for settings, reason in reasons.items()
        if reason is not None
    ]
    if problems:
        raise ScenarioError(problems)


def _refusal(cell: Cell, store: CaptureStore, subject: Subject) -> str | None:
    if isinstance(cell.task, Measure):
        evidence = evidence_of(cell, store, subject, torch.device("cpu"))
        return unmeasurable(cell.task, evidence)
    observation = observe(store.load(cell.round, cell.client), subject)
    return cell.task.unsupported(setting_of(observation))


def _labels(subject: Subject, round: int, client: str) -> tuple[int, ...] | None:
    """A client's labels in a round, ascending: their order would say which step had which."""
    truth = subject.truth(round, client)
    return None if truth is None else tuple(sorted(truth.labels.tolist()))


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))


def _write_verdicts(layout: RunLayout, verdicts: Sequence[Verdict]) -> None:
    listed = [
        {
            **verdict.expectation.model_dump(mode="json", exclude=IN_STUDIES),
            "measured": verdict.measured,
            "low": verdict.low,
            "high": verdict.high,
            "met": verdict.met,
        }
        for verdict in verdicts
    ]
    write_atomic(layout.expectations, json.dumps(listed, indent=1).encode())
