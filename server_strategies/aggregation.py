"""Aggregation rules: Flower's own strategies, chosen by name."""

from __future__ import annotations

import inspect
from typing import Literal, Self

import flwr.serverapp.strategy as flower
from flwr.serverapp.strategy import Strategy
from pydantic import Field, model_validator

from fedleak.components import Component
from fedleak.errors import nearest

AGGREGATIONS: dict[str, type[Strategy]] = {
    "bulyan": flower.Bulyan,
    "fedadagrad": flower.FedAdagrad,
    "fedadam": flower.FedAdam,
    "fedavg": flower.FedAvg,
    "fedavgm": flower.FedAvgM,
    "fedmedian": flower.FedMedian,
    "fedprox": flower.FedProx,
    "fedtrimmedavg": flower.FedTrimmedAvg,
    "fedyogi": flower.FedYogi,
    "krum": flower.Krum,
    "multikrum": flower.MultiKrum,
    "qfedavg": flower.QFedAvg,
}

AggregationName = Literal[
    "bulyan",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedavgm",
    "fedmedian",
    "fedprox",
    "fedtrimmedavg",
    "fedyogi",
    "krum",
    "multikrum",
    "qfedavg",
]


def own_parameters(kind: str) -> dict[str, float | None]:
    """Numeric parameters of one aggregation rule with their defaults (None: required).

    Parameters shared by all of Flower's strategies (fractions, minimum numbers of
    nodes, record keys) are left out: the federation section of a scenario sets them.
    """
    shared = inspect.signature(flower.FedAvg).parameters
    own = inspect.signature(AGGREGATIONS[kind]).parameters
    return {
        name: None if parameter.default is inspect.Parameter.empty else parameter.default
        for name, parameter in own.items()
        if name not in shared and str(parameter.annotation) in {"<class 'float'>", "<class 'int'>"}
    }


class Aggregation(Component):
    """How the server turns the round's updates into the next global model."""

    kind: AggregationName = Field("fedavg", description="name of one of Flower's strategies")
    parameters: dict[str, float | int] = Field(
        default_factory=dict, description="that strategy's own parameters, by Flower's names"
    )

    @model_validator(mode="after")
    def _check_parameters(self) -> Self:
        allowed = own_parameters(self.kind)
        for name in self.parameters:
            if name not in allowed:
                listed = ", ".join(allowed) or "none"
                raise ValueError(
                    f"{self.kind} has no parameter {name!r}; it has: {listed}."
                    f"{nearest(name, allowed)}"
                )
        missing = [n for n, default in allowed.items() if default is None]
        if absent := [name for name in missing if name not in self.parameters]:
            raise ValueError(f"{self.kind} needs a value for {', '.join(absent)}")
        return self

    def build(self, *, evaluate: bool) -> Strategy:
        """Make the Flower strategy; it trains on every client that it is shown.

        Args:
            evaluate: Whether clients evaluate the new global model on held-out data.
        """
        return AGGREGATIONS[self.kind](
            fraction_train=1.0,  # type: ignore[call-arg]  # not in the abstract base
            fraction_evaluate=1.0 if evaluate else 0.0,
            min_train_nodes=1,
            min_evaluate_nodes=1,
            min_available_nodes=1,
            **self.parameters,
        )
