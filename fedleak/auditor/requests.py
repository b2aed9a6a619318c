"""What a user asks of an audit on the command line, read and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedleak.attacks import Attack
from fedleak.auditor.subject import Subject, subject_of_model
from fedleak.captures import RunLayout
from fedleak.errors import Problem, ScenarioError, nearest
from fedleak.records import FACTS, partition_name
from fedleak.scenario import Audit, load_scenario
from fedleak.scenario.assignment import parse_assignment
from fedleak.scenario.loading import audit_from


def parse_tasks(
    directory: Path, attacks: Sequence[str], measures: Sequence[str], settings: Sequence[str]
) -> dict[str, Any]:
    """What ``--attack`` and ``--measure`` name, with parameters from ``--set kind.name=value``.

    What the run's scenario has keeps the scenario's parameters, of several of a kind those of
    the first.

    Returns:
        ``attacks`` and ``measures`` for `fedleak.auditor.audit`; empty where nothing was
        named: the scenario decides.

    Raises:
        ScenarioError: An unknown name or parameter, or one for what was not named.
    """
    if not attacks and not measures and not settings:
        return {}
    layout = RunLayout(directory)
    known: dict[str, dict[str, dict[str, Any]]] = {"attacks": {}, "measures": {}}
    if layout.scenario.exists():
        audit = load_scenario(layout.scenario).audit
        for task in audit.tasks:
            table = "attacks" if isinstance(task, Attack) else "measures"
            known[table].setdefault(str(task.kind), task.model_dump(mode="json"))
    named = {"attacks": attacks, "measures": measures}
    chosen = {
        table: {kind: known[table].get(kind, {"kind": kind}) for kind in kinds}
        for table, kinds in named.items()
    }
    if not attacks and not measures:
        chosen = known
    for setting in settings:
        name, value = parse_assignment("--set", setting)
        kind, dot, parameter = name.partition(".")
        holders = [tasks for tasks in chosen.values() if kind in tasks]
        if not dot or not holders:
            listed = ", ".join(kind for tasks in chosen.values() for kind in tasks) or "none"
            raise ScenarioError(
                Problem("--set", f"{setting!r} sets nothing that is asked for ({listed})")
            )
        holders[0][kind][parameter] = value
    try:
        checked = audit_from({table: list(tasks.values()) for table, tasks in chosen.items()})
    except ScenarioError as error:
        # A user of the command line wrote no lists: name the options.
        raise ScenarioError([_as_option(problem, chosen) for problem in error.problems]) from None
    return {"attacks": checked.attacks, "measures": checked.measures}


def _as_option(problem: Problem, chosen: Mapping[str, Mapping[str, object]]) -> Problem:
    table, index, *parameter = problem.path.split(".", 2)
    if parameter == ["kind"]:
        return Problem(f"--{table.removesuffix('s')}", problem.message)
    kind = list(chosen[table])[int(index)]
    return Problem(f"--set {'.'.join([kind, *parameter])}", problem.message)


def parse_settings(
    directory: Path,
    executor: str | None,
    actors: int | None,
    gpus_per_actor: float | None,
    address: str | None,
) -> Audit:
    """Where cells run: what the run's scenario says, with the command line's changes.

    Raises:
        ScenarioError: An unknown executor or a value out of range.
    """
    scenario = RunLayout(directory).scenario
    known = load_scenario(scenario).audit if scenario.exists() else Audit()
    given = {
        "executor": executor,
        "actors": actors,
        "gpus_per_actor": gpus_per_actor,
        "address": address,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    try:
        settings = audit_from({**known.model_dump(mode="json"), **changes})
    except ScenarioError as error:
        raise ScenarioError(
            [Problem(f"--{p.path.replace('_', '-')}", p.message) for p in error.problems]
        ) from None
    if settings.executor != "ray" and (idle := changes.keys() - {"executor"}):
        raise ScenarioError(
            [
                Problem(f"--{name.replace('_', '-')}", "is for Ray's actors; add --executor ray")
                for name in given
                if name in idle
            ]
        )
    return settings


def parse_rounds(text: str | None) -> list[int] | None:
    """Rounds from ``"1,3"``; None for no choice."""
    return None if text is None else _integers("--rounds", text)


def parse_clients(text: str | None) -> list[str] | None:
    """Clients' names from ``"2,5"`` or ``"client-002,node-17"``; None for no choice."""
    if text is None:
        return None
    names = [part.strip() for part in text.split(",")]
    return [partition_name(int(name)) if name.isdecimal() else name for name in names]


def parse_subject(
    model: str | None,
    input_shape: str | None,
    mean: str | None,
    std: str | None,
    truth: str | None,
    facts: Sequence[str],
) -> Subject | None:
    """The subject that ``--model`` and its companions name; None without ``--model``.

    Raises:
        ScenarioError: A companion without ``--model``, or no input shape, an unknown
            training fact, or what `subject_of_model` refuses.
    """
    if model is None:
        given = {
            "--input-shape": input_shape,
            "--mean": mean,
            "--std": std,
            "--truth": truth,
            "--fact": facts,
        }
        for option, value in given.items():
            if value:
                raise ScenarioError(Problem(option, "needs --model"))
        return None
    if input_shape is None:
        raise ScenarioError(
            Problem("--input-shape", "is needed with --model, for example --input-shape 3,32,32")
        )
    return subject_of_model(
        model,
        tuple(_integers("--input-shape", input_shape)),
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        truth=truth,
        facts=dict(_fact(fact) for fact in facts),
    )


def _fact(text: str) -> tuple[str, float]:
    name, value = parse_assignment("--fact", text)
    if name not in FACTS:
        listed = ", ".join(sorted(FACTS))
        message = f"{name!r} is no training fact; there are: {listed}.{nearest(name, FACTS)}"
        raise ScenarioError(Problem("--fact", message))
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ScenarioError(Problem("--fact", f"{text!r} needs a number, 0 or above"))
    return name, value


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise ScenarioError(
            Problem(option, f"{text!r} is not a list of numbers such as 0.5,0.5,0.5")
        )
    return numbers


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ScenarioError(
            Problem(option, f"{text!r} is not a list of whole numbers such as 1,3")
        ) from None
