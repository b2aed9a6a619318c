"""What a scenario stands for: its data, who holds which samples, its model.

Clients, server and auditor each prepare the scenario for themselves; because every
draw comes from a named stream they all arrive at the same partitions and batches.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from clients.defenses import Defense
from fedleak.attacks import Attack
from fedleak.components import Component
from fedleak.data.batches import batches, client_split, poisson_batches
from fedleak.errors import Problem, ScenarioError, nearest
from fedleak.measures import Measure
from fedleak.measures.layers import layers_of
from fedleak.models import DROPOUT_NOTE, Architecture, Init, build, has_dropout
from fedleak.records import Dataset, DataSplits, Indices, Setting, TrainingFacts, Truth
from fedleak.scenario.schema import Scenario
from fedleak.seeding import stream
from fedleak.traps import NoTrap
from server_strategies import Served


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
        # Copying is many times faster than drawing the weights again.
        return copy.deepcopy(_model_of(self.scenario))

    def fresh(self, seed: int) -> nn.Module:
        """The architecture with initial weights of another draw than the scenario's."""
        return _built(self.scenario.model, self.scenario.init, self.splits.train, seed)

    def served(self) -> Served:
        """What the central party knows of the federation."""
        test, facts = self.splits.test, self.facts(0, 1)
        rng = stream(self.scenario.seed, "similar-data")
        seen = min(len(test), facts.examples, facts.steps * facts.batch_size)
        return Served(
            model=_model_of(self.scenario),
            input_shape=self.splits.train.input_shape,
            train_mode=self.scenario.client.train_mode,
            seed=self.scenario.seed,
            clients=self.scenario.federation.clients,
            rounds=self.scenario.federation.rounds,
            similar=test.samples(rng.choice(len(test), seen, replace=False)),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a reader of the results must know."""
        model = _model_of(self.scenario)
        trained = self.scenario.client.train_mode and has_dropout(model)
        defenses = self.scenario.client.defenses
        facts = self.different_facts if defenses else ()
        said = [defense.note(model, facts) for defense in defenses]
        told = [DROPOUT_NOTE if trained else None, self._short_batches(), *said]
        told += [_held_back(self.scenario), *_server_side(self.scenario)]
        return tuple(dict.fromkeys(note for note in told if note))

    def _short_batches(self) -> str | None:
        wanted = self.scenario.client.batch_size
        held = [len(self.local(client)[0]) for client in range(len(self.partitions))]
        short = [samples for samples in held if samples < wanted]
        if not short:
            return None
        return (
            f"client.batch_size is {wanted}, more than the samples of {len(short)} of "
            f"{len(held)} clients (the fewest: {min(short)}): their batches are smaller."
        )

    def local(self, client: int) -> tuple[Indices, Indices]:
        """A client's samples: those it trains on and those it holds out."""
        return client_split(
            self.partitions[client],
            self.scenario.client.holdout,
            stream(self.scenario.seed, "holdout", client=client),
        )

    def batches(self, client: int, round: int) -> list[Indices]:
        """The samples of each local step of a client in a round, in order.

        Where a defense asks for Poisson samples there are as many steps as without it.
        """
        train, _ = self.local(client)
        settings = self.scenario.client
        rng = stream(self.scenario.seed, "batches", client=client, round=round)
        steps = batches(
            len(train),
            settings.batch_size,
            steps=settings.steps,
            epochs=settings.local_epochs,
            rng=rng,
        )
        if any(defense.poisson for defense in settings.defenses):
            steps = poisson_batches(len(train), settings.batch_size, len(steps), rng)
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

    @functools.cached_property
    def different_facts(self) -> tuple[TrainingFacts, ...]:
        """What clients disclose in the first round: each that differs from others, once."""
        return tuple(dict.fromkeys(self.facts(client, 1) for client in range(len(self.partitions))))

    def truth(self, client: int, round: int) -> Truth:
        """The distinct samples that a client trained on, in the order of first use."""
        used = np.concatenate(self.batches(client, round))
        _, first = np.unique(used, return_index=True)
        indices = used[np.sort(first)]
        train = self.splits.train
        return Truth(inputs=train.samples(indices), labels=train.labels[indices])


def _no_such_layers(scenario: Scenario, model: nn.Module) -> Iterator[Problem]:
    """Expectations of layers, or sets of them, that the model does not have."""
    layers = layers_of(name for name, _ in model.named_parameters())
    for index, expectation in enumerate(scenario.expect):
        for side in ("layer", "minus_layer"):
            named = getattr(expectation, side) or ""
            for layer in filter(None, named.split("+")):
                if layer not in layers:
                    yield Problem(
                        f"expect.{index}.{side}",
                        f"the model has no layer {layer!r}; there are: {', '.join(layers)}."
                        f"{nearest(layer, layers)}",
                    )


def _held_back(scenario: Scenario) -> str | None:
    """What attacks miss that match entries which clients held back."""
    defenses = [d.kind for d in scenario.client.defenses if d.holds_back]
    plain, masked = (
        [a.kind for a in scenario.audit.attacks if getattr(a, "mask_zeros", None) is setting]
        for setting in (False, True)
    )
    attacks = [kind for kind in plain if kind not in masked]
    if not defenses or not attacks:
        return None
    return (
        f"{' and '.join(defenses)}: entries of the update come back as they were sent, which an "
        f"attacker sees. {', '.join(attacks)} matched them as if they were zero; with "
        "mask_zeros = true an attack leaves them out and may find far more."
    )


def _server_side(scenario: Scenario) -> Iterator[str]:
    """What a reader must know of the defenses in which the server takes part."""
    aggregation = scenario.aggregation
    if aggregation.server_noise is not None:
        yield (
            "The server's noise protects nothing against the central party: it reads updates "
            "before noise is added."
        )
    if (group := aggregation.secure_aggregation) is not None:
        several = scenario.client.steps != 1
        yield (
            f"Secure aggregation is simulated: the central party sees sums over {group} clients or "
            "more, of each group those that delivered. Attacks take a sum for the update of one "
            "client that holds all their samples"
            + (", which after several local steps is an approximation." if several else ".")
        )
        if scenario.audit.clients is not None:
            yield (
                "audit.clients names clients, and each is in a sum with others: audited are the "
                "whole sums in which they are, and scores are of all members' samples."
            )


def prepare(scenario: Scenario) -> Prepared:
    """Load the data, divide it among the clients and check that the model fits it.

    The last few are kept, because clients ask for the same one in every round.

    Raises:
        ScenarioError: The data is not there, a client would be left empty, the model
            does not take the data, or an attack or a defense cannot work on the model.
    """
    return _prepare(scenario.model_dump_json())


@functools.lru_cache(maxsize=4)
def _prepare(scenario_json: str) -> Prepared:
    scenario = Scenario.model_validate_json(scenario_json, strict=True)
    source = _key(scenario.data)
    splits = _load(source)
    partitions = _assign(
        source, _key(scenario.partition), scenario.federation.clients, scenario.seed
    )
    prepared = Prepared(scenario, splits, partitions)
    served = prepared.served()
    problems = list(scenario.server.problems(served))
    defenses = scenario.client.defenses
    if defenses:
        facts = prepared.different_facts
        problems += _unsupported("client.defenses", defenses, served.model, facts, splits)
    try:
        model = scenario.server.model_sent(served)
    except NoTrap as lost:
        problems.append(Problem("server", f"{scenario.server.kind} is unsupported: {lost}"))
        raise ScenarioError(problems) from lost
    facts = (prepared.facts(0, 1),)
    audit = scenario.audit
    problems += _unsupported("audit.attacks", audit.attacks, model, facts, splits)
    problems += _unsupported("audit.measures", audit.measures, model, facts, splits)
    problems += _no_such_layers(scenario, model)
    if problems:
        raise ScenarioError(problems)
    return prepared


def _unsupported(
    path: str,
    components: Sequence[Attack | Defense | Measure],
    model: nn.Module,
    facts: Sequence[TrainingFacts],
    splits: DataSplits,
) -> Iterator[Problem]:
    """Attacks, defenses or measures that cannot work with the model and facts, and why."""
    shape, classes = splits.train.input_shape, splits.train.classes
    for index, component in enumerate(components):
        # Attacks and defenses are shown no data.
        data = splits if isinstance(component, Measure) else None
        settings = (Setting(model, told, shape, classes, data) for told in facts)
        reasons = map(component.unsupported, settings)
        if reason := next(filter(None, reasons), None):
            yield Problem(f"{path}.{index}", f"{component.kind} is unsupported: {reason}")


@dataclass(frozen=True)
class _Key:
    """A component as a cache's key: one with lists or tables in it has no hash itself."""

    text: str
    place: Path
    component: Any = field(compare=False)


def _key(component: Component) -> _Key:
    # Relative paths in it are taken from the working directory.
    return _Key(component.model_dump_json(), Path.cwd(), component)


# The runs of a study have most of these in common: each is made once.


@functools.lru_cache(maxsize=4)
def _load(source: _Key) -> DataSplits:
    splits: DataSplits = source.component.load()
    return splits


@functools.lru_cache(maxsize=16)
def _assign(source: _Key, partition: _Key, clients: int, seed: int) -> tuple[Indices, ...]:
    return tuple(partition.component.assign(_load(source).train, clients, seed))


def _model_of(scenario: Scenario) -> nn.Module:
    """To look at and to copy; who trains a model needs one of its own."""
    return _model(_key(scenario.data), _key(scenario.model), _key(scenario.init), scenario.seed)


@functools.lru_cache(maxsize=1)
def _model(source: _Key, model: _Key, init: _Key, seed: int) -> nn.Module:
    return _built(model.component, init.component, _load(source).train, seed)


def _built(model: Architecture, init: Init, train: Dataset, seed: int) -> nn.Module:
    """A network that takes the data, with initial weights drawn from the seed."""
    return build(model, init, train.input_shape, train.classes, seed, tokens=len(train.vocabulary))
