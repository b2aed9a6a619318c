"""What every defense is: a component that acts before, in or after a client's local training."""

from __future__ import annotations

import functools
from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from flwr.app import RecordDict
from torch import Tensor, nn

from fedleak.components import Applicable
from fedleak.records import TrainingFacts
from fedleak.seeding import derive, stream

Update = Mapping[str, Tensor]
"""By parameter, ``(sent - trained) / lr`` in float64: the sum of the steps' gradients."""
Metrics = Mapping[str, float]
"""What a defense reports of a round, by name; the same names in every round. ``bytes`` is
the size of what is released, where the defense makes that smaller."""
FLOAT_BYTES = 4
"""What an entry of an update takes on its way: a float32."""
Step = Callable[[Tensor, Tensor], Metrics]
"""What a defense does in a local step, given the batch's inputs and labels."""


@dataclass(frozen=True)
class Turn:
    """One defense's part in one round of one client.

    Attributes:
        seed: The scenario's seed.
        client: Partition id of the client.
        round: Round number, from 1.
        rounds: Rounds that are planned.
        facts: What the client discloses of its training in the round.
        fresh: Draws initial weights of the federation's model, from a seed.
        state: What the client keeps from round to round.
        label: Names the defense, also where several of its kind act.
    """

    seed: int
    client: int
    round: int
    rounds: int
    facts: TrainingFacts
    fresh: Callable[[int], nn.Module]
    state: RecordDict
    label: str = ""

    @property
    def key(self) -> int:
        """Seed of the defense's own stream, for what takes an integer."""
        return derive(self.seed, f"defense/{self.label}", self.client, self.round)

    @property
    def rng(self) -> np.random.Generator:
        """The defense's own stream from its start: the same draws on every engine."""
        return stream(self.seed, f"defense/{self.label}", self.client, self.round)


class Defense(Applicable, ABC):
    """Something a client does for its privacy, in one or more of four places.

    `receive` looks at what came in, `training` wraps local training, `step` acts within each
    of its steps, `release` changes what goes out.
    """

    repeatable: ClassVar[bool] = False
    """Whether several of the kind may act in one client."""
    holds_back: ClassVar[bool] = False
    """Whether entries of the update come back exactly as they were sent: an attacker sees which,
    and can leave them out of what it matches."""
    draws_masks: ClassVar[bool] = False
    """Whether, where it acts, each pass through the model gives something else."""
    passes_again: ClassVar[bool] = False
    """Whether it runs the model again in a step, which must give what training saw."""
    makes_gradients: ClassVar[bool] = False
    """Whether it makes gradients, or what it adds to them, from the batch's samples, whatever
    others made of them: at most one such may act in a client."""

    @property
    def poisson(self) -> bool:
        """Whether batches are to be Poisson samples; else they are consecutive parts of
        shuffled epochs."""
        return False

    def note(self, model: nn.Module, facts: Sequence[TrainingFacts]) -> str | None:
        """A sentence that a reader of the results must know, if there is one.

        Args:
            model: The architecture as a client trains it.
            facts: What clients disclose of their training; those that differ.
        """
        return None

    def receive(self, model: nn.Module, turn: Turn) -> Metrics:
        """Look at the weights that came in, before training.

        Args:
            model: Holds them; not to be changed.
            turn: The round.

        Raises:
            RoundRefused: The client does not take part in the round; says why.
        """
        return {}

    @contextmanager
    def training(self, model: nn.Module, turn: Turn) -> Iterator[Step]:
        """Wrap local training: change how the model is run, keep what steps share.

        A defense that needs neither does its part in `step`. One that only changes how the
        model is run hands on ``functools.partial(self.step, model, turn=turn)`` as this does.

        Args:
            model: Holds the parameters received, on the device of training. What is done to
                it is undone on leaving, training itself apart.
            turn: The round.

        Yields:
            What is called in each local step, in place of `step`.
        """
        yield functools.partial(self.step, model, turn=turn)

    def step(self, model: nn.Module, inputs: Tensor, labels: Tensor, turn: Turn) -> Metrics:
        """Change the gradient of one local step, before the optimiser takes it.

        Momentum, weight decay and FedProx's pull come after it.

        Args:
            model: In training mode where the client trains so. Each trained parameter's
                ``.grad`` is the gradient of the batch's mean cross-entropy, or what
                defenses before this one made of it; may be changed in place or replaced.
                Nothing else of the model may change, and no ``.grad`` be left behind that
                is not to be taken.
            inputs: ``(b, *input)``, the batch, on the model's device. Of sampled batches
                ``b`` may be 0; the gradient is then zero.
            labels: ``(b,)`` int64.
            turn: The round. Its streams start anew whenever they are asked for: what draws
                in every step does so in `training`, from one generator.

        Returns:
            What is reported of the round; the last step's values count.
        """
        return {}

    def release(self, update: Update, model: nn.Module, turn: Turn) -> tuple[Update, Metrics]:
        """Change the update before it leaves the client.

        Args:
            update: What training, and the defenses before this one, made.
            model: As trained; not to be changed.
            turn: The round.

        Returns:
            What is handed on, and what is reported. A tensor that is to stay is handed on
            as the object it is: weights behind it are released bit for bit.
        """
        return update, {}


def received(defenses: Sequence[Defense], model: nn.Module, turn: Turn) -> dict[str, float]:
    """Let defenses look at the weights that came in.

    Returns:
        What they report, each name after the defense's: ``weight-inspection/score``.

    Raises:
        RoundRefused: One of them will not take part in the round.
    """
    metrics: dict[str, float] = {}
    for defense, own in _turns(defenses, turn):
        metrics |= _named(own, defense.receive(model, own))
    return metrics


@contextmanager
def acting(
    defenses: Sequence[Defense], model: nn.Module, turn: Turn, metrics: dict[str, float]
) -> Iterator[Callable[[Tensor, Tensor], None]]:
    """Let defenses act in local training, one after the other in each step.

    Args:
        defenses: In the order in which they act.
        model: Holds the parameters received.
        turn: The round.
        metrics: Takes what they report.

    Yields:
        What is called in each local step, with the batch's inputs and labels, when the
        parameters hold its gradient.
    """
    with ExitStack() as stack:
        steps = [
            (own, stack.enter_context(defense.training(model, own)))
            for defense, own in _turns(defenses, turn)
        ]

        def act(inputs: Tensor, labels: Tensor) -> None:
            for own, step in steps:
                metrics.update(_named(own, step(inputs, labels)))

        yield act


def released(
    defenses: Sequence[Defense], model: nn.Module, sent: Mapping[str, Tensor], turn: Turn
) -> dict[str, float]:
    """Let defenses change what a trained model gives away, one after the other.

    Args:
        defenses: In the order in which they act.
        model: Holds the trained parameters, on the CPU; afterwards those to release.
        sent: The parameters that it was trained from.
        turn: The round.

    Returns:
        What they report.
    """
    if not defenses:
        return {}
    weights = {name: w for name, w in model.named_parameters() if w.requires_grad}
    lr = turn.facts.lr
    trained: Update = {
        name: (sent[name].double() - weight.detach().double()) / lr
        for name, weight in weights.items()
    }
    update = trained
    metrics: dict[str, float] = {}
    for defense, own in _turns(defenses, turn):
        update, said = defense.release(update, model, own)
        metrics |= _named(own, said)
    with torch.no_grad():
        for name, weight in weights.items():
            if update[name] is not trained[name]:
                weight.copy_(sent[name].double() - lr * update[name])
    return metrics


def labels(defenses: Sequence[Defense]) -> list[str]:
    """What names each defense in metrics: its kind, or kind and position where there are more."""
    kinds = [defense.kind for defense in defenses]
    return [
        kind if kinds.count(kind) == 1 else f"{kind}-{position}"
        for position, kind in enumerate(kinds)
    ]


def _turns(defenses: Sequence[Defense], turn: Turn) -> Iterator[tuple[Defense, Turn]]:
    for defense, label in zip(defenses, labels(defenses), strict=True):
        yield defense, replace(turn, label=label)


def _named(turn: Turn, metrics: Metrics) -> dict[str, float]:
    return {f"{turn.label}/{name}": value for name, value in metrics.items()}
