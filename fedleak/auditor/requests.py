"""What a user asks of an audit on the command line, read and checked."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedleak.attacks import Attack
from fedleak.auditor.subject import Subject, subject_of_model
from fedleak.captures import RunLayout
from fedleak.errors import Problem, ScenarioError
from fedleak.records import partition_name
from fedleak.scenario import load_scenario
from fedleak.scenario.loading import attacks_from


def parse_attacks(
    directory: Path, kinds: Sequence[str], settings: Sequence[str]
) -> list[Attack] | None:
    """Attacks named with ``--attack``, with parameters from ``--set kind.name=value``.

    An attack that the run's scenario has keeps the scenario's parameters. None where
    nothing was named: the scenario decides.

    Raises:
        ScenarioError: An unknown attack or parameter, or one for an attack not named.
    """
    if not kinds and not settings:
        return None
    layout = RunLayout(directory)
    known: dict[str, dict[str, Any]] = {}
    if layout.scenario.exists():
        attacks = load_scenario(layout.scenario).audit.attacks
        known = {attack.kind: attack.model_dump(mode="json") for attack in attacks}
    chosen = {kind: known.get(kind, {"kind": kind}) for kind in (kinds or known)}
    for setting in settings:
        name, value = _assignment("--set", setting)
        kind, dot, parameter = name.partition(".")
        if not dot or kind not in chosen:
            listed = ", ".join(chosen) or "none"
            raise ScenarioError(
                Problem("--set", f"{setting!r} sets no attack that is asked for ({listed})")
            )
        chosen[kind][parameter] = value
    return attacks_from(list(chosen.values()))


def parse_rounds(text: str | None) -> list[int] | None:
    """Rounds from ``"1,3"``; None for no choice."""
    return None if text is None else _integers("--rounds", text)


def parse_clients(text: str | None) -> list[str] | None:
    """Clients' names from ``"2,5"`` or ``"client-002,node-17"``; None for no choice."""
    if text is None:
        return None
    names = [part.strip() for part in text.split(",")]
    return [partition_name(int(name)) if name.isdigit() else name for name in names]


def parse_subject(
    model: str | None, input_shape: str | None, truth: str | None, facts: Sequence[str]
) -> Subject | None:
    """The subject that ``--model`` and its companions name; None without ``--model``.

    Raises:
        ScenarioError: A companion without ``--model``, or no input shape, or what
            `subject_of_model` refuses.
    """
    if model is None:
        given = {"--input-shape": input_shape, "--truth": truth, "--fact": facts}
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
        truth=truth,
        facts=dict(_assignment("--fact", fact) for fact in facts),
    )


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ScenarioError(
            Problem(option, f"{text!r} is not a list of whole numbers such as 1,3")
        ) from None


def _assignment(option: str, text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ScenarioError(Problem(option, f"{text!r} is not of the form NAME=VALUE"))
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value
