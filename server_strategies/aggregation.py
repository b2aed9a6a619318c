"""Aggregation rules: Flower's own strategies, chosen by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Literal, Self

import flwr.serverapp.strategy as flower
import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, Strategy
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedleak.components import Component
from fedleak.errors import nearest
from fedleak.seeding import derive

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


OF_SUMS = ("fedadagrad", "fedadam", "fedavg", "fedavgm", "fedprox", "fedyogi")
"""Rules that need no more than the sum of the clients' updates."""


class ServerNoise(BaseModel):
    """Central differential privacy: each update is clipped, and the mean noised (McMahan 2018).

    Flower's `DifferentialPrivacyServerSideFixedClipping`. The server does it: the central party
    reads updates before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clip: float = Field(gt=0, le=1e9, description="greatest l2 norm of a client's weights' change")
    noise_multiplier: float = Field(
        ge=0,
        le=1e6,
        description="standard deviation of the noise on the mean, times the clients asked, "
        "in units of clip",
    )


class _SeededNoise(DifferentialPrivacyServerSideFixedClipping):
    """Draws from a named stream, and goes on where a client failed; Flower does neither."""

    def __init__(self, strategy: Strategy, noise: ServerNoise, asked: int, seed: int) -> None:
        super().__init__(strategy, noise.noise_multiplier, noise.clip, asked)
        self.seed = seed

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As Flower does."""
        before = np.random.get_state()
        np.random.seed(derive(self.seed, "server-noise", round=server_round) % 2**32)
        try:
            usable = [reply for reply in replies if reply.has_content()]
            return super().aggregate_train(server_round, usable)
        finally:
            np.random.set_state(before)


class Aggregation(Component):
    """How the server turns the round's updates into the next global model."""

    kind: AggregationName = Field("fedavg", description="name of one of Flower's strategies")
    parameters: dict[str, float | int] = Field(
        default_factory=dict, description="that strategy's own parameters, by Flower's names"
    )

    server_noise: ServerNoise | None = Field(
        None,
        description="noise that the server adds to the next global model; default none",
    )
    secure_aggregation: int | None = Field(
        None,
        ge=2,
        le=100_000,
        description="simulate secure aggregation: the central party sees sums over groups of at "
        "least so many clients; default it sees each client's update",
    )

    @model_validator(mode="after")
    def _check_what_the_server_sees(self) -> Self:
        if self.secure_aggregation is None:
            return self
        if self.kind not in OF_SUMS:
            raise ValueError(
                f"{self.kind} needs each client's update, secure_aggregation gives sums only; "
                f"it goes with: {', '.join(OF_SUMS)}"
            )
        if self.server_noise is not None:
            raise ValueError(
                "server_noise clips each client's update, secure_aggregation gives sums only; "
                "clients can clip themselves (update-noise)"
            )
        return self

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

    def build(self, *, evaluate: bool, asked: int = 1, seed: int = 0) -> Strategy:
        """Make the Flower strategy; it trains on every client that it is shown.

        Args:
            evaluate: Whether clients evaluate the new global model on held-out data.
            asked: Clients asked each round, by which the server's noise is divided.
            seed: Fixes the server's noise.
        """
        strategy = AGGREGATIONS[self.kind](
            fraction_train=1.0,  # type: ignore[call-arg]  # not in the abstract base
            fraction_evaluate=1.0 if evaluate else 0.0,
            min_train_nodes=1,
            min_evaluate_nodes=1,
            min_available_nodes=1,
            **self.parameters,
        )
        if self.server_noise is None:
            return strategy
        return _SeededNoise(strategy, self.server_noise, asked, seed)
