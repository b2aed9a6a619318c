"""Reading a scenario: from TOML or a mapping, with overrides, to a checked `Scenario`."""

from __future__ import annotations

import copy
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from fedleak.captures import RunLayout
from fedleak.errors import Problem, ScenarioError, nearest
from fedleak.scenario.assignment import parse_assignment, put
from fedleak.scenario.checks import combinations
from fedleak.scenario.problems import key_path, problems_of
from fedleak.scenario.schema import Audit, Scenario, ScenarioFile

_STAND_INS = {"data": {"kind": "mnist-5k"}, "model": {"kind": "mlp"}}
"""Required tables without a default; combinations do not depend on them."""


def load_scenario(
    source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()
) -> Scenario:
    """Read and check a scenario.

    Relative paths in a scenario file are taken from the working directory.

    Args:
        source: Path of a TOML file, or the same content as a mapping.
        overrides: Assignments such as ``"client.lr=0.5"``; the value is read as TOML
            and, where that fails, as text. ``audit.attacks.0.iterations=50`` reaches
            into lists.

    Raises:
        ScenarioError: With every problem at once: syntax, unknown keys, wrong types,
            values out of range, impossible combinations. Or it is a study.
    """
    raw = read_document(source, overrides)
    if is_study(raw):
        raise ScenarioError(
            Problem(
                "",
                "this is a study of several runs (it has matrix or repeats): load it with "
                "`load_study`, or run it with `fedleak run`",
            )
        )
    return scenario_from(raw)


def read_document(
    source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()
) -> dict[str, Any]:
    """Read a scenario or a study and apply the overrides; checks no value.

    Raises:
        ScenarioError: It cannot be read, or an override leads nowhere.
    """
    raw = _read(source)
    problems: list[Problem] = []
    for override in overrides:
        try:
            name, value = parse_assignment("--set", override, "key.path=value")
            put(raw, name, value)
        except ScenarioError as error:
            problems += error.problems
        except LookupError as error:
            problems.append(Problem("--set", f"{override!r}: {error.args[0]}"))
    if problems:
        raise ScenarioError(problems)
    return raw


def is_study(raw: Mapping[str, Any]) -> bool:
    """Whether a document that was read stands for several runs."""
    return "matrix" in raw or "repeats" in raw


def scenario_of_run(run_config: Mapping[str, Any]) -> Scenario:
    """The scenario that ``flwr run`` names in its run config.

    Its path is taken from the working directory and, where it is not there, from the
    app's own root: Flower decides where a SuperLink and its nodes run.

    Raises:
        ScenarioError: See `load_scenario`.
    """
    path = Path(str(run_config["scenario"]))
    packed = Path(__file__).parents[2] / path
    return load_scenario(packed if not path.exists() and packed.exists() else path)


def scenario_from(raw: dict[str, Any]) -> Scenario:
    """Check raw data against the schema; see `load_scenario` for the errors."""
    problems = list(_not_finite(raw))
    dropped: set[str] = set()
    try:
        scenario = _validate(raw)
    except ValidationError as error:
        told = {problem.path for problem in problems}
        problems += [p for p in problems_of(error, ScenarioFile, raw) if p.path not in told]
        scenario, dropped = _repaired(raw)
    problems += [
        problem
        for problem, rests_on in combinations(scenario)
        if not any(_doubtful(key, dropped) for key in rests_on)
    ]
    if problems:
        raise ScenarioError(problems)
    return scenario


def audit_from(raw: Mapping[str, Any]) -> Audit:
    """Check an audit table that stands outside a scenario, as one inside it is checked.

    Raises:
        ScenarioError: With every problem at once.
    """
    try:
        return Audit.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        raise ScenarioError(problems_of(error, Audit, raw)) from None


def to_toml(scenario: Scenario) -> str:
    """The scenario as TOML with every default written out; reads back as the same."""
    return tomli_w.dumps(scenario.model_dump(mode="json", exclude_none=True))


def _validate(raw: Mapping[str, Any]) -> Scenario:
    # Strict JSON mode: no "3" for 3, but lists for tuples and text for paths.
    return Scenario.model_validate_json(json.dumps(raw, default=str), strict=True)


def _read(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source))
    path = Path(source)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScenarioError(
            Problem("", f"no scenario file {path}; `fedleak init {path}` writes one")
        ) from None
    except IsADirectoryError:
        message = f"{path} is a directory, not a scenario file"
        if RunLayout(path).manifest.is_file():
            message = (
                f"{path} is the directory of a run: `fedleak audit {path}` adds "
                f"attacks, `fedleak report {path}` shows its results again"
            )
        raise ScenarioError(Problem("", message)) from None
    except OSError as error:
        raise ScenarioError(
            Problem("", f"cannot read {path}: {error.strerror or error}")
        ) from error
    except UnicodeDecodeError as error:
        raise ScenarioError(
            Problem("", f"{path} is not UTF-8 text, as TOML must be (byte {error.start})")
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(Problem("", f"{path} is not valid TOML: {error}")) from error


def _not_finite(value: Any, path: str = "") -> Iterator[Problem]:
    """TOML spells inf and nan, but no setting has a use for them, and JSON loses them."""
    if isinstance(value, float) and not math.isfinite(value):
        yield Problem(path, f"must be a finite number, not {value}")
    entries = dict(enumerate(value)) if isinstance(value, (list, tuple)) else value
    if isinstance(entries, Mapping):
        for key, entry in entries.items():
            yield from _not_finite(entry, f"{path}.{key}" if path else str(key))


def _repaired(raw: Mapping[str, Any]) -> tuple[Scenario, set[str]]:
    """The scenario that is left without what is wrong, and the key paths dropped for it.

    Combinations are worth checking even beside a misspelt key.
    """
    rest, dropped = copy.deepcopy(dict(raw)), set[str]()
    while True:
        try:
            return _validate({**_STAND_INS, **rest}), dropped
        except ValidationError as error:
            dropped.add(_drop(rest, key_path(error.errors()[0], rest)))


def _drop(raw: dict[str, Any], path: list[str]) -> str:
    """Remove what stands at ``path`` or, where nothing does, the nearest above it.

    A list is removed as a whole, because its other entries are known by their places.
    Returns the path removed.
    """
    here: Any = raw
    holder, depth = raw, 0
    for position, key in enumerate(path):
        if isinstance(here, list):
            here = here[int(key)]
        elif isinstance(here, dict) and key in here:
            holder, depth, here = here, position, here[key]
        else:
            break
    del holder[path[depth]]
    return ".".join(path[: depth + 1])


def _doubtful(key: str, dropped: Iterable[str]) -> bool:
    """Whether a default may stand at ``key`` only because something was dropped."""
    table, _, name = key.rpartition(".")
    for path in dropped:
        beside, _, other = path.rpartition(".")
        if f"{key}.".startswith(f"{path}.") or (beside == table and nearest(other, [name])):
            return True
    return False
