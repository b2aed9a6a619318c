"""Expectations: published values or limits, checked after the audit."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from fedleak.measures import BUDGET_METRICS, MEASURES, SCORES
from fedleak.scenario.weighing import Aggregate, Found, weigh

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

CHOOSING = {"where", "minus", "over", "values"}
"""Fields that choose among a study's cells."""
IN_STUDIES = {*CHOOSING, "against"}
"""Fields that only a study has a use for."""


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


_Metric = Annotated[
    str,
    AfterValidator(_known),
    Field(json_schema_extra={"anyOf": [{"enum": list(METRICS)}, {"pattern": "/"}]}),
]


class Expectation(BaseModel):
    """A value that scores must meet or, in a study, a whole published table of values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: _Metric = Field(
        description="what is compared: a score or, in a study, also accuracy, loss, seconds, "
        "train-seconds, bytes-sent, refused, and what a defense reports: update-noise/epsilon"
    )
    attack: str | None = Field(
        None,
        description="scores of this attack only, as tables name it: gs, or gs mask_zeros=true; "
        "default all",
    )
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
    against: _Metric | None = Field(
        None,
        description="in a study: compare Spearman's rank correlation of the metric with this "
        "other one, over the samples of all cells chosen, which count together",
    )
    aggregate: Aggregate = Field(
        "median",
        description="how the scores of all reconstructed samples become one value; spread is their "
        "standard deviation as a part of their mean",
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
        if self.against is not None:
            given = [name for name in ("layer", "minus") if getattr(self, name)]
            if given:
                raise ValueError(
                    f"against compares two metrics of whole samples, without {given[0]}"
                )
            for metric in (self.metric, self.against):
                if not needs_audit(metric):
                    raise ValueError(f"{metric!r} is not of single samples: against cannot use it")
            if self.against == self.metric:
                raise ValueError("against is the metric itself: their correlation is 1")
        if self.over == OVER_ROUNDS:
            if self.round is not None:
                raise ValueError("give round, or values over the rounds, not both")
            if not all(key.isdecimal() and int(key) >= 1 for key in self.values):
                raise ValueError("values over the rounds go by a round's number, from 1")
        return self


@dataclass(frozen=True)
class Verdict:
    """What became of an expectation; ``measured`` is None where nothing was scored.

    ``low`` to ``high`` is its 95 % interval, where it has one.
    """

    expectation: Expectation
    measured: float | None
    met: bool
    low: float | None = None
    high: float | None = None


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
        scores: Rows of the ledger.
    """
    rows = [
        row
        for row in scores
        if row["metric"] == expectation.metric
        and expectation.attack in (None, row["attack"])
        and (expectation.round is None or row["round"] == expectation.round)
    ]

    def in_layer(layer: str | None) -> Found:
        return found_in(
            ((row["cell"], row["sample"]), row) for row in rows if row["layer"] == layer
        )

    minus = None if expectation.minus_layer is None else in_layer(expectation.minus_layer)
    measured, between = weigh(in_layer(expectation.layer), minus, expectation.aggregate)
    low, high = between or (None, None)
    return Verdict(expectation, measured, meets(expectation, measured), low, high)


def found_in(rows: Iterable[tuple[Hashable, Mapping[str, Any]]]) -> Found:
    """What a run gave of one metric in one layer.

    Where a measure gave a value of all samples together, that stands for those of single ones.

    Args:
        rows: Rows of the ledger, each with what it is about, unique among them.
    """
    kept = [(unit, row) for unit, row in rows if not math.isnan(row["value"])]
    whole = [
        (unit, row) for unit, row in kept if row.get("measure") is not None and row["sample"] < 0
    ]
    chosen = whole or kept
    own = None
    if len(chosen) == 1 and chosen[0][1].get("measure") is not None:
        low, high = (chosen[0][1][end] for end in ("low", "high"))
        own = None if math.isnan(low) else (low, high)
    return Found({unit: row["value"] for unit, row in chosen}, own)
