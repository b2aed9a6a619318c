"""Auditing a run: attack what was captured, score it, check the expectations."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedleak.attacks import Attack
from fedleak.auditor.cells import Cell, Outcome, run_cell
from fedleak.auditor.ledger import write_ledger
from fedleak.auditor.scoring import score_cells
from fedleak.auditor.subject import Subject, subject_of_scenario
from fedleak.captures import CaptureStore, RunLayout, write_atomic
from fedleak.errors import CaptureError, Problem, ScenarioError
from fedleak.records import partition_name
from fedleak.scenario import Scenario, load_scenario
from fedleak.scenario.expectations import Verdict, judge

OnCell = Callable[[int, int, Outcome], None]


@dataclass(frozen=True)
class Audited:
    """What an audit gave.

    Attributes:
        rows: One per score, as in ``results.parquet``; empty where no truth is known.
        verdicts: One per expectation of the scenario.
    """

    rows: tuple[dict[str, Any], ...]
    verdicts: tuple[Verdict, ...]


def audit(
    directory: str | Path,
    *,
    attacks: Sequence[Attack] | None = None,
    rounds: Sequence[int] | None = None,
    clients: Sequence[str] | None = None,
    subject: Subject | None = None,
    on_cell: OnCell | None = None,
) -> Audited:
    """Attack and score the captures of a run. Finished cells are not run again.

    Args:
        directory: A run directory.
        attacks: Attacks to run; default those of the run's scenario.
        rounds: Rounds to audit; default those of the scenario, else all.
        clients: Clients to audit, by name; default those of the scenario, else all.
        subject: Model and truth, for captures that no scenario describes.
        on_cell: Called after each cell with cells done, cells in all and the outcome.

    Returns:
        All scores of the run so far, and how its expectations fared.

    Raises:
        ScenarioError: Neither a scenario nor a subject is there, or no attack is named.
        CaptureError: A capture is damaged or a round or client is not there.
    """
    layout = RunLayout(Path(directory))
    scenario = _scenario_of(layout)
    if subject is None:
        if scenario is None:
            raise ScenarioError(
                Problem(
                    "",
                    f"{layout.root} has no scenario.toml; name the model that was trained, "
                    "for example --model task:Net --input-shape 3,32,32",
                )
            )
        subject = subject_of_scenario(scenario)
    store = CaptureStore(layout.root)
    cells = _plan(store, scenario, attacks, rounds, clients)
    todo = [cell for cell in cells if not (layout.cells / f"{cell.name}.json").exists()]
    for done, cell in enumerate(todo, start=1):
        outcome = run_cell(cell, store, subject)
        if on_cell is not None:
            on_cell(done, len(todo), outcome)
    rows = tuple(score_cells(layout, subject))
    write_ledger(layout.results, rows)
    verdicts = tuple(judge(expected, rows) for expected in (scenario.expect if scenario else ()))
    if verdicts:
        _write_verdicts(layout, verdicts)
    return Audited(rows, verdicts)


def _scenario_of(layout: RunLayout) -> Scenario | None:
    return load_scenario(layout.scenario) if layout.scenario.exists() else None


def _plan(
    store: CaptureStore,
    scenario: Scenario | None,
    attacks: Sequence[Attack] | None,
    rounds: Sequence[int] | None,
    clients: Sequence[str] | None,
) -> list[Cell]:
    committed = store.rounds()
    if not committed:
        raise CaptureError(f"{store.layout.manifest}: no round was captured")
    if scenario is not None:
        attacks = scenario.audit.attacks if attacks is None else attacks
        rounds = scenario.audit.rounds if rounds is None else rounds
        if clients is None and scenario.audit.clients is not None:
            # The scenario names partitions, not all of which are asked in each round.
            asked = {name for number in committed for name in store.clients(number)}
            clients = [n for n in map(partition_name, scenario.audit.clients) if n in asked]
    if not attacks:
        raise ScenarioError(
            Problem("audit.attacks", "no attack to run; name one, for example --attack gs")
        )
    for number in rounds or ():
        store.clients(number)  # raises where the round is not there
    known = {name for number in committed for name in store.clients(number)}
    if unknown := sorted(set(clients or ()) - known):
        raise CaptureError(
            f"{store.layout.manifest}: no capture of {', '.join(unknown)}; "
            f"there are {', '.join(sorted(known))}"
        )
    return [
        Cell(number, client, attack)
        for number in (committed if rounds is None else rounds)
        for client in store.clients(number)
        if clients is None or client in clients
        for attack in attacks
    ]


def _write_verdicts(layout: RunLayout, verdicts: Sequence[Verdict]) -> None:
    listed = [
        {
            **verdict.expectation.model_dump(mode="json"),
            "measured": verdict.measured,
            "met": verdict.met,
        }
        for verdict in verdicts
    ]
    write_atomic(layout.expectations, json.dumps(listed, indent=1).encode())
