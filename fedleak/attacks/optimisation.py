"""What attacks share that search for samples whose update is the observed one."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedleak.attacks.attack import Attack, Progress, refuse_unusable
from fedleak.attacks.labels import labels_unsupported, recover_labels
from fedleak.errors import AttackFailed
from fedleak.gradients import UpdateMap, mean_gradient
from fedleak.gradients.update_map import Update
from fedleak.records import Observation, Reconstruction, TrainingFacts

Distance = Callable[[Update, Mapping[str, Tensor]], Tensor]


def cosine_distance(update: Update, target: Mapping[str, Tensor]) -> Tensor:
    """One minus the cosine between updates ``(R, *shape)`` and one target: ``(R,)`` in [0, 2].

    Computed as half the squared distance of the two directions, which is the same and
    keeps its digits where the cosine is close to 1.
    """
    lengths = _sum(update[name].flatten(1).square().sum(1) for name in target)
    inverse = (lengths + torch.finfo(lengths.dtype).tiny).rsqrt()
    norm = _norm(target)
    return _sum(
        (update[name] * like(inverse, update[name]) - value / norm).flatten(1).square().sum(1) / 2
        for name, value in target.items()
    )


def squared_distance(update: Update, target: Mapping[str, Tensor]) -> Tensor:
    """Squared distance over the target's squared norm: ``(R,)``, 1 for an update of zero.

    Gradients of an untrained network are small, and so is a plain squared distance: its
    values would lie below every tolerance. Relative to the target it has no unit.
    """
    squares = _sum(
        (update[name] - value).flatten(1).square().sum(1) for name, value in target.items()
    )
    return squares / _norm(target).square()


def _norm(target: Mapping[str, Tensor]) -> Tensor:
    return _sum(value.square().sum() for value in target.values()).sqrt()


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, down plus across: ``(R, ..., H, W)`` to ``(R,)``."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).mean(1)
    across = (images[..., :, 1:] - images[..., :, :-1]).abs().flatten(1).mean(1)
    return down + across


@dataclass(frozen=True)
class Search:
    """One observation, made ready to be searched.

    Attributes:
        mapping: The update map of the client's local training.
        target: The update to be met, by parameter name.
        labels: ``(R, b)`` int64.
        start: ``(R, b, *input)`` first candidates.
    """

    mapping: UpdateMap
    target: Mapping[str, Tensor]
    labels: Tensor
    start: Tensor

    def evaluate(
        self, inputs: Tensor, distance: Distance, penalty: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The candidates' objectives ``(R,)`` and their gradients ``(R, b, *input)``."""

        def objective(update: Update, at: Tensor) -> Tensor:
            value = distance(update, self.target)
            return value if penalty is None else value + penalty(at)

        return self.mapping.value_and_grad(objective, inputs, self.labels)


class Best:
    """The best each candidate has been, by the attack's own objective.

    Nothing here waits for the device. A candidate whose objective is not a number
    never replaces what it had.

    Attributes:
        inputs: ``(R, b, *input)``.
        objective: ``(R,)``, infinite for a candidate that never had a finite one.
    """

    def __init__(self, start: Tensor) -> None:
        self.inputs = start.clone()
        self.objective = torch.full(
            (len(start),), torch.inf, dtype=start.dtype, device=start.device
        )

    def update(self, inputs: Tensor, objective: Tensor) -> None:
        """Take what is better: ``(R, b, *input)`` and its objectives ``(R,)``."""
        better = objective < self.objective
        self.inputs = torch.where(like(better, inputs), inputs, self.inputs)
        self.objective = torch.where(better, objective, self.objective)


def like(per_candidate: Tensor, inputs: Tensor) -> Tensor:
    """View ``(R,)`` so that it broadcasts over ``(R, ...)``."""
    return per_candidate.reshape(-1, *[1] * (inputs.dim() - 1))


class OptimisationAttack(Attack):
    """Optimises candidate samples until their update resembles the observed one.

    All restarts run together as one batched computation; the one with the best own
    objective is returned. Labels are recovered first (`fedleak.attacks.labels`). When
    the client took several steps, which sample was in which of them is not disclosed,
    so every restart starts from another order of the labels.

    Confidence: minus the objective of the chosen restart, for each of its samples.
    """

    restarts: int = Field(
        4, ge=1, le=4096, description="candidates optimised at once from different starts"
    )
    iterations: int = Field(
        1000, ge=1, le=1_000_000, description="evaluations of the update map per restart"
    )
    initialisation: Literal["uniform", "normal", "grey"] = Field(
        "uniform",
        description="pixels at the start: uniform in 0..1, normal around 0.5 with deviation "
        "0.25, or grey (0.5 with deviation 0.01)",
    )
    local_steps: Literal["unroll", "one-gradient"] = Field(
        "unroll", description="unroll the client's local steps, or take its update for one gradient"
    )
    layers: tuple[str, ...] | None = Field(
        None, min_length=1, description="parameters whose update is used, by name; all if not given"
    )
    chunk: int | None = Field(
        None, ge=1, le=4096, description="restarts evaluated at a time, to bound memory"
    )

    def unsupported(
        self, model: nn.Module, facts: TrainingFacts, input_shape: tuple[int, ...], classes: int
    ) -> str | None:
        names = {name for name, _ in model.named_parameters()}
        for name in self.layers or ():
            if name not in names:
                return f"the model has no parameter {name!r}; it has {', '.join(sorted(names))}"
        return labels_unsupported(model, facts, input_shape, classes)

    def reconstruct(
        self, observation: Observation, seed: int, progress: Progress | None = None
    ) -> Reconstruction:
        refuse_unusable(observation)
        search = self._prepare(observation, seed)
        best = self._optimise(search, self._reporter(progress))
        objective, chosen = best.objective.min(0)
        if not objective.isfinite():
            raise AttackFailed(f"all {self.restarts} restarts of {self.kind_name()!r} diverged")
        inputs = best.inputs[chosen].clamp(0, 1)
        return Reconstruction(
            inputs=inputs,
            labels=search.labels[chosen],
            confidence=(-objective).expand(len(inputs)).clone(),
        )

    @abstractmethod
    def _optimise(self, search: Search, report: Callable[[int, Best], None]) -> Best:
        """Improve the candidates; call ``report`` after every iteration."""

    def _reporter(self, progress: Progress | None) -> Callable[[int, Best], None]:
        """Pass on one iteration in many: reading the objective waits for the device."""
        every = max(1, self.iterations // 20)

        def report(iteration: int, best: Best) -> None:
            if progress is not None and (iteration % every == 0 or iteration == self.iterations):
                progress(iteration, self.iterations, float(best.objective.min()))

        return report

    def _prepare(self, observation: Observation, seed: int) -> Search:
        facts, target = observation.facts, observation.update
        if self.local_steps == "one-gradient":
            target = mean_gradient(target, observation.parameters, facts)
            facts = replace(
                facts,
                steps=1,
                batch_size=observation.samples,
                examples=observation.samples,
                weight_decay=0.0,
            )
        mapping = UpdateMap(
            observation.model,
            observation.parameters,
            observation.buffers,
            facts,
            layers=self.layers,
            chunk=self.chunk,
        )
        target = {name: target[name].detach() for name in mapping.layers}
        if not _norm(target) > 0:
            raise AttackFailed("the update is zero: it says nothing about the samples")
        generator = torch.Generator().manual_seed(seed)
        shape = (self.restarts, observation.samples, *observation.input_shape)
        if self.initialisation == "uniform":
            start = torch.rand(shape, generator=generator)
        else:
            deviation = 0.25 if self.initialisation == "normal" else 0.01
            start = 0.5 + deviation * torch.randn(shape, generator=generator)
        labels = recover_labels(observation).expand(self.restarts, -1)
        if facts.steps > 1:
            order = torch.rand(labels.shape, generator=generator).argsort(1).to(labels.device)
            labels = labels.gather(1, order)
        return Search(mapping, target, labels, start.to(next(iter(target.values()))))
