"""The matrix of a study: which settings its cells have."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, JsonValue

MOST_CELLS = 10_000
_NAME_LENGTH = 100

Settings = Mapping[str, JsonValue]
"""Values by key path: what sets a cell apart from the others."""


def _flat(block: Any) -> Any:
    """``server.s = [...]`` without quotes is a table in a table; both spellings are taken."""
    return dict(_lists(block)) if isinstance(block, Mapping) else block


def _lists(block: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in block.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _lists(value, f"{path}.")
        else:
            # A strict schema takes JSON's lists as tuples, but not Python's.
            yield path, tuple(value) if isinstance(value, list) else value


def _blocks(matrix: Any) -> Any:
    if isinstance(matrix, Mapping):
        return (matrix,)
    return tuple(matrix) if isinstance(matrix, list) else matrix


Block = Annotated[
    dict[str, Annotated[tuple[JsonValue, ...], Field(min_length=1)]],
    BeforeValidator(_flat, json_schema_input_type=dict[str, JsonValue]),
]
Matrix = Annotated[
    tuple[Block, ...],
    BeforeValidator(
        _blocks, json_schema_input_type=dict[str, JsonValue] | list[dict[str, JsonValue]]
    ),
]
"""Blocks of key path = list of values. A block is the cartesian product of its lists, the
first key varying slowest; the matrix is the union of its blocks."""


def size(matrix: Matrix) -> int:
    """Number of cells; a study without a matrix has one."""
    products = [math.prod(len(values) for values in block.values()) for block in matrix]
    return sum(products) if products else 1


def settings_of(matrix: Matrix) -> list[Settings]:
    """The settings of every cell, in order."""
    if not matrix:
        return [{}]
    return [
        dict(zip(block, chosen, strict=True))
        for block in matrix
        for chosen in itertools.product(*block.values())
    ]


def keys_of(cells: Sequence[Settings]) -> tuple[str, ...]:
    """All key paths that the cells set, in order of first appearance."""
    return tuple(dict.fromkeys(key for settings in cells for key in settings))


def label(value: JsonValue) -> str:
    """A value in a few words, for tables and names: of a component its kind comes first."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list):
        return f"[{', '.join(label(entry) for entry in value)}]"
    if isinstance(value, dict):
        kind = [label(value["kind"])] if "kind" in value else []
        rest = [f"{key}={label(entry)}" for key, entry in value.items() if key != "kind"]
        return " ".join(kind + rest)
    return str(value)


def cell_names(cells: Sequence[Settings]) -> list[str]:
    """A readable name for every cell, which is also that of its directory.

    Only cells with the very same settings share a name.
    """
    names = [_name(settings) for settings in cells]
    meanings: dict[str, set[str]] = {}
    for name, settings in zip(names, cells, strict=True):
        meanings.setdefault(name, set()).add(_digest(settings))
    return [
        name if len(meanings[name]) == 1 else f"{name}-{_digest(settings)}"
        for name, settings in zip(names, cells, strict=True)
    ]


def _name(settings: Settings) -> str:
    name = ",".join(f"{_plain(key)}={_plain(label(v))}" for key, v in settings.items()) or "base"
    return name if len(name) <= _NAME_LENGTH else f"{name[:_NAME_LENGTH]}-{_digest(settings)}"


def _plain(words: str) -> str:
    """What a file system and a shell take as it is; dashes stand for the rest."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "~", words).strip("~").replace("~", "-")


def _digest(settings: Settings) -> str:
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]


def same(wanted: JsonValue, value: JsonValue) -> bool:
    """Whether a selector's value means a cell's value: itself, or its label.

    The keys of a TOML table are text, so ``"0.40"`` means 0.4 as well.
    """
    if wanted == value and isinstance(wanted, bool) == isinstance(value, bool):
        return True
    if not isinstance(wanted, str) or isinstance(value, str):
        return False
    if wanted == label(value):
        return True
    try:
        return not isinstance(value, bool) and float(wanted) == value
    except ValueError:
        return False
