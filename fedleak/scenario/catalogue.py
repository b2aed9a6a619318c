"""Everything a scenario can name, with parameters: for ``fedleak list``."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass

from flwr.serverapp.strategy import Strategy
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import server_strategies
from clients import defenses
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
    """One thing a scenario can name; ``module:...`` stands for the user's own."""

    kind: str
    summary: str
    parameters: tuple[Parameter, ...]


_TABLES: dict[str, tuple[type[Component], ...]] = {
    "data": data.SOURCES,
    "partition": data.PARTITIONS,
    "model": models.MODELS,
    "init": models.INITS,
    "server": server_strategies.PARTIES,
    "defense": defenses.DEFENSES,
    "attack": attacks.ATTACKS,
    "measure": measures.MEASURES,
    "score": measures.SCORES,
}


def catalogue() -> dict[str, tuple[Entry, ...]]:
    """All entries by the table of the scenario in which they stand."""
    entries = {
        name: tuple(_entry(component, component.kind_name()) for component in components)
        for name, components in _TABLES.items()
    }
    entries["data"] += (_entry(data.CustomSource, "module:callable"),)
    entries["model"] += (_entry(models.CustomModel, "module:Class"),)
    entries["aggregation"] = tuple(
        Entry(
            kind,
            f"Flower's {strategy.__name__}.",
            tuple(
                Parameter(
                    f"parameters.{name}",
                    None if default is None else str(default),
                    _flowers_words(strategy, name),
                )
                for name, default in own_parameters(kind).items()
            ),
        )
        for kind, strategy in AGGREGATIONS.items()
    )
    return entries


def _flowers_words(strategy: type[Strategy], parameter: str) -> str:
    """First sentence of Flower's documentation (NumPy style) on a strategy's parameter."""
    said = re.search(
        rf"^{parameter} ?:.*\n((?: +.*\n?)+)", inspect.getdoc(strategy) or "", re.MULTILINE
    )
    return " ".join(said[1].split()).split(". ")[0].rstrip(".") if said else ""


def _entry(component: type[Component], kind: str) -> Entry:
    summary = (inspect.getdoc(component) or "").split("\n\n")[0]
    return Entry(
        kind,
        " ".join(summary.replace("`", "").split()),
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
    return "none" if value is None else json.dumps(value, default=_in_words)


def _in_words(value: object) -> str:
    return str(value.kind) if isinstance(value, Component) else str(value)
