"""Assignments such as ``client.lr=0.5``, and key paths into nested tables and lists."""

from __future__ import annotations

import tomllib
from typing import Any

from fedleak.errors import Problem, ScenarioError


def parse_assignment(option: str, text: str, form: str = "NAME=VALUE") -> tuple[str, Any]:
    """Split ``name=value``; the value is read as TOML and, where that fails, as text.

    Args:
        option: The option of the command line, for example ``--set``.
        text: What was given to it.
        form: How it is to be written, for the error.

    Raises:
        ScenarioError: It has no name or no equals sign.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    # As TOML spells a key with dots, which a matrix takes without quotes as well.
    name = name.replace('"', "").replace("'", "")
    if not equals or not all(name.split(".")):
        raise ScenarioError(Problem(option, f"{text!r} is not of the form {form}"))
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def put(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set what stands at a key path; ``audit.attacks.0.tv`` reaches into a list.

    Tables on the way are made where they are missing, entries of lists are not.

    Raises:
        LookupError: The path leads through a value that is no table, or to a position
            that a list does not have.
    """
    *above, last = path.split(".")
    here: Any = raw
    for key in above:
        here = here[_position(here, key)] if isinstance(here, list) else here.setdefault(key, {})
        if not isinstance(here, (dict, list)):
            raise LookupError(f"{key!r} is a value, not a table")
    if isinstance(here, list):
        here[_position(here, last)] = value
    else:
        here[last] = value


def _position(here: list[Any], key: str) -> int:
    if not key.isdecimal() or int(key) >= len(here):
        raise LookupError(f"{key!r} is no position in a list of {len(here)}")
    return int(key)
