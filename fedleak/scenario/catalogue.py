"""Everything a scenario can name, with parameters: for ``fedleak list``."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import server_strategies
from fedleak import attacks, data, measures, models
from fedleak.components import Component
from server_strategies.aggregation import AGGREGATIONS, own_parameters


@dataclass(frozen=True)
class Parameter:
    """A parameter; ``default`` is None where a value must be given."""

    name: str
    default: str | None
    description: str


@dataclass(frozen=True)
class Entry:
    """One thing a scenario can name."""

    kind: str
    summary: str
    parameters: tuple[Parameter, ...]


_TABLES: dict[str, tuple[type[Component], ...]] = {
    "data": data.SOURCES,
    "partition": data.PARTITIONS,
    "model": models.MODELS,
    "init": models.INITS,
    "server": server_strategies.PARTIES,
    "attack": attacks.ATTACKS,
    "score": measures.SCORES,
}


def catalogue() -> dict[str, tuple[Entry, ...]]:
    """All entries by the table of the scenario in which they stand."""
    entries = {name: tuple(map(_entry, components)) for name, components in _TABLES.items()}
    entries["aggregation"] = tuple(
        Entry(
            kind,
            f"Flower's {strategy.__name__}",
            tuple(
                Parameter(name, None if default is None else str(default), "")
                for name, default in own_parameters(kind).items()
            ),
        )
        for kind, strategy in AGGREGATIONS.items()
    )
    return entries


def _entry(component: type[Component]) -> Entry:
    summary = (component.__doc__ or "").strip().split("\n\n")[0]
    return Entry(
        component.kind_name(),
        " ".join(summary.split()),
        tuple(
            Parameter(name, _default(info), info.description or "")
            for name, info in component.model_fields.items()
            if name != "kind"
        ),
    )


def _default(info: FieldInfo) -> str | None:
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return None
    return "none" if value is None else json.dumps(value, default=str)
