"""Reading a scenario: from TOML or a mapping, with overrides, to a checked `Scenario`."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from fedleak.attacks import Attack
from fedleak.errors import Problem, ScenarioError
from fedleak.scenario.checks import combinations
from fedleak.scenario.problems import key_path, problems_of
from fedleak.scenario.schema import Audit, Scenario

_STAND_INS = {"data": "mnist-5k", "model": "mlp"}
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
            values out of range, impossible combinations.
    """
    raw = _read(source)
    for override in overrides:
        _assign(raw, override)
    return scenario_from(raw)


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
    try:
        scenario = _validate(raw)
    except ValidationError as error:
        problems = problems_of(error, Scenario, raw)
        # Combinations are worth checking even beside a misspelt key: repair what is
        # wrong with defaults and look at what remains.
        repaired = copy.deepcopy(raw)
        broken = [key_path(detail, raw) for detail in error.errors()]
        for path in broken:
            _drop(repaired, path)
        for table, kind in _STAND_INS.items():
            if "kind" not in repaired.setdefault(table, {}):
                repaired[table] = {"kind": kind}
        try:
            rest = combinations(_validate(repaired))
        except ValidationError:
            rest = []
        tops = {".".join(path) for path in broken}
        problems += [problem for problem in rest if problem.path not in tops]
        raise ScenarioError(problems) from None
    if problems := combinations(scenario):
        raise ScenarioError(problems)
    return scenario


def attacks_from(raw: list[dict[str, Any]]) -> list[Attack]:
    """Check attacks that stand outside a scenario, as `load_scenario` checks those in one.

    Raises:
        ScenarioError: With every problem at once.
    """
    table = {"attacks": raw}
    try:
        return list(Audit.model_validate_json(json.dumps(table), strict=True).attacks)
    except ValidationError as error:
        raise ScenarioError(problems_of(error, Audit, table)) from None


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
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(Problem("", f"cannot read {path}: {error}")) from error
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(Problem("", f"{path} is not valid TOML: {error}")) from error


def _assign(raw: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ScenarioError(Problem("--set", f"{override!r} is not of the form key.path=value"))
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    here: Any = raw
    for key in keys[:-1]:
        here = _child(here, key, override)
    if isinstance(here, list):
        here[_index(here, keys[-1], override)] = value
    else:
        here[keys[-1]] = value


def _child(here: Any, key: str, override: str) -> Any:
    child = (
        here[_index(here, key, override)] if isinstance(here, list) else here.setdefault(key, {})
    )
    if not isinstance(child, (dict, list)):
        raise ScenarioError(Problem("--set", f"{override!r}: {key!r} is a value, not a table"))
    return child


def _index(here: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(here):
        raise ScenarioError(
            Problem("--set", f"{override!r}: {key!r} is no position in a list of {len(here)}")
        )
    return int(key)


def _drop(raw: Any, path: list[str]) -> None:
    for key in path[:-1]:
        raw = raw[int(key)] if isinstance(raw, list) else raw.get(key, {})
    if isinstance(raw, dict) and path:
        raw.pop(path[-1], None)
