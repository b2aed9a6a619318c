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
from fedleak.scenario.schema import Client
from server_strategies.aggregation import AGGREGATIONS, Aggregation, ServerNoise, own_parameters


@dataclass(frozen=True)
class Parameter:
    """A parameter; ``default`` is None where a value must be given."""

    name: str
    default: str | None
    description: str


@dataclass(frozen=True)
class Entry:
    """One thing a scenario can name; ``module:...`` stands for the user's own.

    ``metrics`` are what a measure gives and an expectation can name.
    """

    kind: str
    summary: str
    parameters: tuple[Parameter, ...]
    metrics: tuple[str, ...] = ()


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
    entries["defense"] += _elsewhere()
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


def _elsewhere() -> tuple[Entry, ...]:
    """Defenses that are settings of another table than ``client.defenses``."""
    rounds, noise, sums = (
        tuple(_parameter(f"{table}.{name}", model.model_fields[name]) for name in names)
        for table, model, names in (
            ("client", Client, ("local_steps", "local_epochs")),
            ("aggregation.server_noise", ServerNoise, tuple(ServerNoise.model_fields)),
            ("aggregation", Aggregation, ("secure_aggregation",)),
        )
    )
    return (
        Entry(
            "local-averaging",
            "Several batches or epochs of training before an update is released: a setting of "
            "[client]. Trap weights extract 54 % of one batch of 100 digits, and 3 % of twenty "
            "(Boenisch et al., Table 9).",
            rounds,
        ),
        Entry(
            "server-noise",
            "Noise that the server adds to the mean of clipped updates: a setting of "
            "[aggregation]. It protects against who sees the global model, not against the "
            "central party, which reads updates before (Boenisch et al., §9.1).",
            noise,
        ),
        Entry(
            "secure-aggregation",
            "The central party sees only sums over groups of clients, simulated: a setting of "
            "[aggregation].",
            sums,
        ),
    )


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
            _parameter(name, info)
            for name, info in component.model_fields.items()
            if name != "kind"
        ),
        component.metrics if issubclass(component, measures.Measure) else (),
    )


def _parameter(name: str, info: FieldInfo) -> Parameter:
    return Parameter(name, _default(info), info.description or "")


def _default(info: FieldInfo) -> str | None:
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return None
    return "none" if value is None else json.dumps(value, default=_in_words)


def _in_words(value: object) -> object:
    return {"kind": value.kind} if isinstance(value, Component) else str(value)
