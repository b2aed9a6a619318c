"""What attacks share that search for samples whose update is the observed one."""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from fedleak.attacks.attack import Attack, Progress, refuse_unusable
from fedleak.attacks.labels import known_labels, labels_unsupported, recover_labels
from fedleak.errors import AttackFailed
from fedleak.gradients import UpdateMap, mean_gradient
from fedleak.gradients.update_map import Update
from fedleak.records import Observation, Reconstruction, TrainingFacts

Distance = Callable[[Update, Mapping[str, Tensor]], Tensor]


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, down plus across: ``(R, ..., H, W)`` to ``(R,)``."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).mean(1)
    across = (images[..., :, 1:] - images[..., :, :-1]).abs().flatten(1).mean(1)
    return down + across


class Invertible(Protocol):
    """What a search inverts: the update map, or anything that is called like it."""

    @property
    def chunk(self) -> int | None:
        """Candidates evaluated at a time; None for all."""

    def __call__(self, inputs: Tensor, labels: Tensor) -> Update:
        """See `UpdateMap.__call__`."""

    def value_and_grad(
        self, objective: Callable[[Update, Tensor], Tensor], inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `UpdateMap.value_and_grad`."""


@dataclass(frozen=True)
class Search:
    """One observation, made ready to be searched.

    Attributes:
        mapping: The update map of the client's local training.
        target: The update to be met, by parameter name.
        labels: ``(R, b)`` int64, or ``(R, b, K)`` first logits where they are optimised.
        start: ``(R, b, *input)`` first candidates.
    """

    mapping: Invertible
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

    def evaluate_jointly(
        self, inputs: Tensor, logits: Tensor, distance: Distance
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Objectives ``(R,)``, and their gradients in the inputs and in labels' logits."""
        results = []
        size = self.mapping.chunk or len(inputs)
        for parts in zip(torch.split(inputs, size), torch.split(logits, size), strict=True):
            at, scores = (part.detach().requires_grad_() for part in parts)
            value = distance(self.mapping(at, scores.softmax(-1)), self.target)
            results.append((value.detach(), *torch.autograd.grad(value.sum(), (at, scores))))
        values, of_inputs, of_logits = (torch.cat(each) for each in zip(*results, strict=True))
        return values, of_inputs, of_logits


class Best:
    """The best each candidate has been, by the attack's own objective.

    Nothing here waits for the device. A candidate whose objective is not a number
    never replaces what it had.

    Attributes:
        inputs: ``(R, b, *input)``.
        labels: ``(R, b)``, or ``(R, b, K)`` logits where they are optimised as well.
        objective: ``(R,)``, infinite for a candidate that never had a finite one.
    """

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs = inputs.clone()
        self.labels = labels
        self.objective = torch.full(
            (len(inputs),), torch.inf, dtype=inputs.dtype, device=inputs.device
        )

    def update(self, inputs: Tensor, objective: Tensor, labels: Tensor | None = None) -> None:
        """Take what is better: ``(R, b, *input)``, its objectives ``(R,)`` and its labels."""
        better = objective < self.objective
        self.inputs = torch.where(like(better, inputs), inputs, self.inputs)
        self.objective = torch.where(better, objective, self.objective)
        if labels is not None:
            self.labels = torch.where(like(better, labels), labels, self.labels)


class Watch:
    """Told after every iteration, says whether to go on, and passes on how far it is.

    The clock is read every time; the objective, which waits for the device, one
    iteration in a hundred.
    """

    def __init__(
        self,
        iterations: int,
        stop_below: float | None,
        budget: float | None,
        progress: Progress | None,
    ) -> None:
        """Start the clock.

        Args:
            iterations: How many there will be at most.
            stop_below: Objective of the best candidate that is good enough.
            budget: Seconds from now on.
            progress: Told now and then.
        """
        self._iterations = iterations
        self._stop_below = stop_below
        self._budget = budget
        self._progress = progress
        self._every = max(1, iterations // 100)
        self._started = time.monotonic()
        self._begun = False

    def warming_up(self) -> Watch:
        """The same clock for iterations that prepare the search and count for nothing else."""
        silent = copy.copy(self)
        silent._iterations, silent._stop_below, silent._progress = 0, None, None
        self._begun = True
        return silent

    def __call__(self, iteration: int, best: Best) -> bool:
        """Whether to go on after an iteration, counted from 1.

        Raises:
            AttackFailed: The time budget was over before the first one ended.
        """
        spent = time.monotonic() - self._started
        last = self._budget is not None and spent > self._budget
        if last and not self._begun:
            raise AttackFailed(
                f"the time budget of {self._budget:g} s is too small for one iteration, "
                f"which took {spent:.2g} s"
            )
        self._begun = True
        last = last or iteration == self._iterations
        if self._progress is None and self._stop_below is None:
            return not last
        if last or iteration % self._every == 0:
            objective = float(best.objective.min())
            last = last or (self._stop_below is not None and objective <= self._stop_below)
            if self._progress is not None:
                self._progress(iteration, self._iterations, objective)
        return not last


def like(per_candidate: Tensor, inputs: Tensor) -> Tensor:
    """View ``(R,)`` so that it broadcasts over ``(R, ...)``."""
    return per_candidate.reshape(-1, *[1] * (inputs.dim() - 1))


class OptimisationAttack(Attack):
    """Optimises candidate samples until their update resembles the observed one.

    All restarts run together as one batched computation; the one with the best own
    objective is returned.

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
    box: bool = Field(False, description="keep pixels in 0..1 all the way, not only at the end")
    stop_below: float | None = Field(
        None,
        gt=0,
        description="stop once the best restart's objective is this small; never if unset",
    )
    budget: float | None = Field(
        None,
        gt=0,
        le=1e7,
        description="seconds after which no further iteration begins",
    )
    precision: Literal["float32", "float64"] = Field(
        "float32", description="floating-point type of the computation"
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
        return None

    def reconstruct(
        self, observation: Observation, seed: int, progress: Progress | None = None
    ) -> Reconstruction:
        refuse_unusable(observation)
        watch = Watch(self.iterations, self.stop_below, self.budget, progress)
        best = self._optimise(self._prepare(observation, seed), watch)
        objective, chosen = best.objective.min(0)
        if not objective.isfinite():
            raise AttackFailed(f"all {self.restarts} restarts of {self.kind_name()!r} diverged")
        inputs, labels = best.inputs[chosen].clamp(0, 1), best.labels[chosen]
        given = next(iter(observation.parameters.values())).dtype
        return Reconstruction(
            inputs=inputs.to(given),
            labels=labels.argmax(-1) if labels.is_floating_point() else labels,
            confidence=(-objective).to(given).expand(len(inputs)).clone(),
        )

    @abstractmethod
    def _optimise(self, search: Search, watch: Watch) -> Best:
        """Improve the candidates; ask ``watch`` after every iteration whether to go on."""

    @abstractmethod
    def _labels(self, observation: Observation, generator: torch.Generator) -> Tensor:
        """The search's labels: ``(R, b)``, or ``(R, b, K)`` logits to be optimised."""

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
        precision = self._dtype
        mapping = UpdateMap(
            observation.model,
            {name: value.to(precision) for name, value in observation.parameters.items()},
            {
                name: value.to(precision) if value.is_floating_point() else value
                for name, value in observation.buffers.items()
            },
            facts,
            layers=self.layers,
            chunk=self.chunk,
        )
        target = {name: target[name].detach().to(precision) for name in mapping.layers}
        if not any(value.any() for value in target.values()):
            raise AttackFailed("the update is zero: it says nothing about the samples")
        generator = torch.Generator().manual_seed(seed)
        shape = (observation.samples, *observation.input_shape)
        start = self._start(shape, generator).to(next(iter(target.values())))
        labels = self._labels(observation, generator).to(start.device)
        if labels.is_floating_point():
            labels = labels.to(precision)
        return Search(mapping, target, labels, start)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.precision == "float64" else torch.float32

    def _start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """First candidates ``(R, *shape)``."""
        shape = (self.restarts, *shape)
        if self.initialisation == "uniform":
            return torch.rand(shape, generator=generator)
        deviation = 0.25 if self.initialisation == "normal" else 0.01
        return 0.5 + deviation * torch.randn(shape, generator=generator)


class LabelFirstAttack(OptimisationAttack):
    """An optimisation attack that has the labels before it looks for the samples.

    They are recovered from the update (`fedleak.attacks.labels`) or known by the threat
    model. When the client took several steps, which sample was in which of them is not
    disclosed, so every restart starts from another order of the labels.
    """

    labels: Literal["recovered", "known"] = Field(
        "recovered",
        description="labels recovered from the update, or those that the threat model grants",
    )

    def unsupported(
        self, model: nn.Module, facts: TrainingFacts, input_shape: tuple[int, ...], classes: int
    ) -> str | None:
        reason = super().unsupported(model, facts, input_shape, classes)
        if reason is None and self.labels == "recovered":
            return labels_unsupported(model, facts, input_shape, classes)
        return reason

    def _labels(self, observation: Observation, generator: torch.Generator) -> Tensor:
        read = recover_labels if self.labels == "recovered" else known_labels
        labels = read(observation).expand(self.restarts, -1)
        if observation.facts.steps > 1 and self.local_steps == "unroll":
            order = torch.rand(labels.shape, generator=generator).argsort(1).to(labels.device)
            labels = labels.gather(1, order)
        return labels
