"""What a scenario stands for: its data, who holds which samples, its model.

Clients, server and auditor each prepare the scenario for themselves; because every
draw comes from a named stream they all arrive at the same partitions and batches.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from torch import nn

from fedleak.data.batches import batches, client_split
from fedleak.errors import Problem, ScenarioError
from fedleak.models import build
from fedleak.records import DataSplits, Indices, TrainingFacts, Truth
from fedleak.scenario.schema import Scenario
from fedleak.seeding import stream


@dataclass(frozen=True)
class Prepared:
    """A scenario with its data at hand.

    Attributes:
        scenario: The scenario.
        splits: Samples to train on and samples held out for the server's test.
        partitions: For each client, the indices of its samples in ``splits.train``.
    """

    scenario: Scenario
    splits: DataSplits
    partitions: tuple[Indices, ...]

    def model(self) -> nn.Module:
        """A fresh model with the scenario's initial weights."""
        return build(
            self.scenario.model,
            self.scenario.init,
            self.splits.train.input_shape,
            self.splits.train.classes,
            self.scenario.seed,
        )

    def local(self, client: int) -> tuple[Indices, Indices]:
        """A client's samples: those it trains on and those it holds out."""
        return client_split(
            self.partitions[client],
            self.scenario.client.holdout,
            stream(self.scenario.seed, "holdout", client=client),
        )

    def batches(self, client: int, round: int) -> list[Indices]:
        """The samples of each local step of a client in a round, in order."""
        train, _ = self.local(client)
        settings = self.scenario.client
        steps = batches(
            len(train),
            settings.batch_size,
            steps=settings.steps,
            epochs=settings.local_epochs,
            rng=stream(self.scenario.seed, "batches", client=client, round=round),
        )
        return [train[step] for step in steps]

    def facts(self, client: int, round: int, proximal_mu: float = 0.0) -> TrainingFacts:
        """What the client discloses of its training in a round."""
        settings = self.scenario.client
        return TrainingFacts(
            lr=settings.lr,
            steps=len(self.batches(client, round)),
            batch_size=settings.batch_size,
            examples=len(self.local(client)[0]),
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            proximal_mu=proximal_mu,
            train_mode=settings.train_mode,
        )

    def truth(self, client: int, round: int) -> Truth:
        """The distinct samples that a client trained on, in the order of first use."""
        used = np.concatenate(self.batches(client, round))
        _, first = np.unique(used, return_index=True)
        indices = used[np.sort(first)]
        train = self.splits.train
        return Truth(inputs=train.pixels(indices), labels=train.labels[indices])


def prepare(scenario: Scenario) -> Prepared:
    """Load the data, divide it among the clients and check that the model fits it.

    The last few are kept, because clients ask for the same one in every round.

    Raises:
        ScenarioError: The data is not there, a client would be left empty, the model
            does not take the data, or an attack cannot work on the model.
    """
    return _prepare(scenario.model_dump_json())


@functools.lru_cache(maxsize=4)
def _prepare(scenario_json: str) -> Prepared:
    scenario = Scenario.model_validate_json(scenario_json, strict=True)
    splits = scenario.data.load()
    partitions = scenario.partition.assign(splits.train, scenario.federation.clients, scenario.seed)
    prepared = Prepared(scenario, splits, tuple(partitions))
    model = prepared.model()
    problems = [
        Problem(f"audit.attacks.{index}", f"{attack.kind} is unsupported: {reason}")
        for index, attack in enumerate(scenario.audit.attacks)
        if (
            reason := attack.unsupported(
                model, prepared.facts(0, 1), splits.train.input_shape, splits.train.classes
            )
        )
    ]
    if problems:
        raise ScenarioError(problems)
    return prepared
