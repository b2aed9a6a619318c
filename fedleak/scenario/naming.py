"""What attacks and measures of an audit are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedleak.attacks import Attack
from fedleak.measures import Measure
from fedleak.scenario.matrix import label


def told_apart(kind: str, parameters: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """The kind and, shortest first, the parameters that are not as usual: ``gs restarts=1``."""
    told = [
        f"{name}={label(value)}"
        for name, value in parameters.items()
        if name not in usual or usual[name] != value
    ]
    return " ".join([kind, *sorted(told, key=len)])


def names_of(tasks: Sequence[Attack | Measure]) -> tuple[str, ...]:
    """A name for each; of several of a kind the first has its kind's, the others say in
    what they differ from it."""
    usual: dict[tuple[bool, str], dict[str, Any]] = {}
    names = []
    for task in tasks:
        own = task.model_dump(mode="json")
        first = usual.setdefault((isinstance(task, Attack), task.kind), own)
        names.append(told_apart(task.kind, own, first))
    return tuple(names)
