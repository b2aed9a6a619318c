"""Expectations: published values or limits, checked after the audit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from fedleak.measures import BUDGET_METRICS, MEASURES, SCORES

Aggregate = Literal["mean", "median", "min", "max"]
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)

SCORED: tuple[str, ...] = (*(score.kind_name() for score in SCORES), *BUDGET_METRICS)
"""What reconstructions are scored by."""
MEASURED: tuple[str, ...] = tuple(
    dict.fromkeys(metric for measure in MEASURES for metric in measure.metrics)
)
"""What measures give."""
MODEL_METRICS = ("accuracy", "loss")
"""What the central party measures of the global model after each round."""
TIME = "seconds"
"""How long an attack took on one capture."""
CLIENT_METRICS = ("train-seconds", "bytes-sent", "refused")
"""What is known of each client in a round, beside what its defenses report: how long it trained
and defended, bytes of its update in the shortest form that its defenses know, else as it is
kept, and whether (1 or 0) it refused to take part."""
METRICS = (*SCORED, *MEASURED, *MODEL_METRICS, *CLIENT_METRICS, TIME)

OVER_ROUNDS = "round"
"""What values go by that are published for several rounds of each cell."""

IN_STUDIES = {"where", "minus", "over", "values"}
"""Fields that choose among a study's cells."""

_FUNCTIONS: dict[Aggregate, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: float(np.mean(values)),
    "median": lambda values: float(np.median(values)),
    "min": min,
    "max": max,
}


def reported_by(metric: str) -> str | None:
    """The defense that reports a metric, as metrics name it; None where none does."""
    defense, slash, _ = metric.partition("/")
    return defense if slash else None


def needs_audit(metric: str) -> bool:
    """Whether a metric is an attack's or a measure's, not of the global model or of clients."""
    return metric not in (*MODEL_METRICS, *CLIENT_METRICS) and reported_by(metric) is None


def _known(metric: str) -> str:
    if metric not in METRICS and reported_by(metric) is None:
        listed = ", ".join(f"'{name}'" for name in METRICS)
        raise PydanticCustomError("literal_error", "not a metric", {"expected": listed})
    return metric


class Expectation(BaseModel):
    """A value that scores must meet or, in a study, a whole published table of values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Annotated[
        str,
        AfterValidator(_known),
        Field(json_schema_extra={"anyOf": [{"enum": list(METRICS)}, {"pattern": "/"}]}),
    ] = Field(
        description="what is compared: a score or, in a study, also accuracy, loss, seconds, "
        "train-seconds, bytes-sent, refused, and what a defense reports: update-noise/epsilon"
    )
    attack: str | None = Field(None, description="scores of this attack only; default all")
    layer: str | None = Field(
        None, description="values of this layer only; default those that belong to no layer"
    )
    minus_layer: str | None = Field(
        None, description="with layer: compare the difference to this other layer"
    )
    round: int | None = Field(
        None,
        ge=1,
        description="values of this round only; default all rounds, of the global model and of "
        "clients the last",
    )
    where: dict[str, JsonValue] = Field(
        {}, description="in a study: cells with these values of the matrix; default all cells"
    )
    minus: dict[str, JsonValue] = Field(
        {},
        description="in a study: compare the difference to the cell that has these values instead",
    )
    aggregate: Aggregate = Field(
        "median", description="how the scores of all reconstructed samples become one value"
    )
    comparison: Literal["==", ">=", "<="] = Field(description="measured COMPARISON value")
    value: float | None = Field(None, description="published value or limit")
    over: str | None = Field(
        None,
        description="in a study, in place of value: the matrix key that values go by, or round",
    )
    values: dict[str, float] = Field(
        {}, description='with over: a published value for each, for example {"0.4" = 0.02}'
    )
    tolerance: float = Field(
        0.0, ge=0, description="how far the measured value may miss, in the metric's unit"
    )
    source: str = Field("", description="where the value comes from, for example a table")
    claim: str = Field("", description="what holds if it is met, as a sentence for the report")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.value is None) == (self.over is None):
            raise ValueError("needs either value, or over and values")
        if (self.over is None) != (not self.values):
            raise ValueError("over and values belong together")
        if self.minus_layer is not None and self.layer is None:
            raise ValueError("minus_layer needs layer, from which it is subtracted")
        if self.layer is not None and self.minus_layer == self.layer:
            raise ValueError("layer and minus_layer are the same: their difference is 0")
        if self.over == OVER_ROUNDS:
            if self.round is not None:
                raise ValueError("give round, or values over the rounds, not both")
            if not all(key.isdecimal() and int(key) >= 1 for key in self.values):
                raise ValueError("values over the rounds go by a round's number, from 1")
        return self


@dataclass(frozen=True)
class Verdict:
    """What became of an expectation; ``measured`` is None where nothing was scored."""

    expectation: Expectation
    measured: float | None
    met: bool


def aggregated(values: Sequence[float], aggregate: Aggregate) -> float:
    """One value for several, at least one."""
    return _FUNCTIONS[aggregate](values)


def meets(expectation: Expectation, measured: float | None) -> bool:
    """Whether a measured value is within the tolerance of what was expected."""
    value = expectation.value
    if measured is None or value is None:
        return False
    if expectation.comparison == "==":
        return abs(measured - value) <= expectation.tolerance
    if expectation.comparison == ">=":
        return measured >= value - expectation.tolerance
    return measured <= value + expectation.tolerance


def judge(expectation: Expectation, scores: Iterable[Mapping[str, Any]]) -> Verdict:
    """Compare an expectation with the audit's rows.

    Args:
        expectation: What was expected; a single value.
        scores: Rows with ``round``, ``attack``, ``metric``, ``layer`` and ``value``.
    """
    rows = list(scores)

    def value(layer: str | None) -> float | None:
        values = [
            row["value"]
            for row in rows
            if row["metric"] == expectation.metric
            and expectation.attack in (None, row["attack"])
            and row["layer"] == layer
            and (expectation.round is None or row["round"] == expectation.round)
            and not math.isnan(row["value"])
        ]
        return aggregated(values, expectation.aggregate) if values else None

    measured = value(expectation.layer)
    if expectation.minus_layer is not None:
        other = value(expectation.minus_layer)
        measured = None if measured is None or other is None else measured - other
    return Verdict(expectation, measured, meets(expectation, measured))
