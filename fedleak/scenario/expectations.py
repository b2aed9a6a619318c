"""Expectations: published values or limits, checked after the audit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

_AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "mean": lambda values: float(np.mean(values)),
    "median": lambda values: float(np.median(values)),
    "min": min,
    "max": max,
}


class Expectation(BaseModel):
    """One value that the audit's scores must meet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Literal["mse", "psnr", "ssim", "label-accuracy"] = Field(
        description="score that is compared"
    )
    attack: str | None = Field(None, description="scores of this attack only; default all")
    aggregate: Literal["mean", "median", "min", "max"] = Field(
        "median",
        description="how the scores of all reconstructed samples become one value",
    )
    comparison: Literal["==", ">=", "<="] = Field(description="measured COMPARISON value")
    value: float = Field(description="published value or limit")
    tolerance: float = Field(
        0.0, ge=0, description="how far the measured value may miss, in the metric's unit"
    )
    source: str = Field("", description="where the value comes from, for example a table")


@dataclass(frozen=True)
class Verdict:
    """What became of an expectation; ``measured`` is None where nothing was scored."""

    expectation: Expectation
    measured: float | None
    met: bool


def judge(expectation: Expectation, scores: Iterable[Mapping[str, Any]]) -> Verdict:
    """Compare an expectation with the audit's rows.

    Args:
        expectation: What was expected.
        scores: Rows with ``attack``, ``metric`` and ``value``.
    """
    values = [
        row["value"]
        for row in scores
        if row["metric"] == expectation.metric
        and expectation.attack in (None, row["attack"])
        and not math.isnan(row["value"])
    ]
    if not values:
        return Verdict(expectation, None, met=False)
    measured = _AGGREGATES[expectation.aggregate](values)
    if expectation.comparison == "==":
        met = abs(measured - expectation.value) <= expectation.tolerance
    elif expectation.comparison == ">=":
        met = measured >= expectation.value - expectation.tolerance
    else:
        met = measured <= expectation.value + expectation.tolerance
    return Verdict(expectation, measured, met)
