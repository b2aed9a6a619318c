"""What attacks share that search for samples whose update is the observed one."""

from __future__ import annotations

import copy
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedleak.attacks.attack import Attack, Progress, refuse_unusable
from fedleak.attacks.embedding import behind_embedding
from fedleak.attacks.labels import known_labels, labels_unsupported, recover_labels
from fedleak.errors import AttackFailed
from fedleak.gradients import BatchedMap, Update, UpdateMap, like, masked, mean_gradient
from fedleak.records import Observation, Reconstruction, Setting, TrainingFacts

Distance = Callable[[Update, Update], Tensor]

Initialisation = Literal["uniform", "normal", "grey"] | Path
INITIALISATION = (
    "pixels at the start: uniform in 0..1, normal around 0.5 with deviation 0.25, grey (0.5 with "
    "deviation 0.01), or the safetensors file of a finished cell, whose samples the first restart "
    "takes and the others with noise of deviation 0.1"
)
"""Description of the field, whose default differs from attack to attack."""

_GIVEN_DEVIATION = 0.1

_FULL = 32
"""Candidates that make a batched computation worth most of what it can be."""

_MOST_BYTES = 2**30
"""Memory that the targets of several observations may take, one copy per candidate."""


_COLOURS = functional.normalize(torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]]))
"""Brightness and two axes of colour, orthonormal. In photographs edges are edges of
brightness, and colour varies far less (Ruderman, Cronin, Chiao, J. Opt. Soc. Am. A 15,
1998)."""

Prior = Callable[[Tensor, Tensor], Tensor]
"""Objectives ``(r,)`` of distances ``(r,)`` and inputs ``(r, b, *input)``."""


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, down plus across: ``(R, ..., H, W)`` to ``(R,)``."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).mean(1)
    across = (images[..., :, 1:] - images[..., :, :-1]).abs().flatten(1).mean(1)
    return down + across


def smoothness(
    tv: float, relative_tv: float, inputs: Tensor, colour: float = 1.0
) -> Callable[..., Tensor] | None:
    """Total variation as a `Prior` for ``inputs``; None for flat ones, which have none.

    It takes one argument more, by name: the ``share`` of ``tv`` that counts, 1 if not
    given.

    Args:
        tv: Its weight beside the distance.
        relative_tv: Its weight in parts of the distance at hand, which keeps both in
            proportion whatever the scale of the distance and however small it gets.
        inputs: ``(R, b, *input)``.
        colour: Weight of colour beside that of brightness in images of three channels;
            1 takes each channel by itself.
    """
    if inputs.dim() < 4 or not (tv or relative_tv):
        return None
    mixed = colour != 1 and inputs.dim() == 5 and inputs.shape[2] == 3
    axes = _COLOURS.to(inputs) * inputs.new_tensor([[1.0], [colour], [colour]])

    def objective(distance: Tensor, at: Tensor, share: float = 1.0) -> Tensor:
        seen = torch.einsum("kc,...chw->...khw", axes, at) if mixed else at
        variation = total_variation(seen)
        return distance * (1 + relative_tv * variation) + share * tv * variation

    return objective


@dataclass(frozen=True)
class Search:
    """Observations of one model and one local training, made ready to be searched.

    Candidates are in the order of their observations: ``R`` is the number of restarts
    times that of observations.

    Attributes:
        mapping: The update map of the clients' local training, or what stands for it.
        target: The updates to be met, ``(R, *shape)`` by parameter name, or
            ``(1, *shape)`` where there is one observation.
        labels: ``(R, b)`` int64, or ``(R, b, K)`` first logits where they are optimised.
        start: ``(R, b, *input)`` first candidates.
        observations: How many there are.
        mask: Which entries of an update are to be met, bool, in the shapes of ``target``;
            of parameters that are not in it, all are.
    """

    mapping: BatchedMap
    target: Update
    labels: Tensor
    start: Tensor
    observations: int = 1
    mask: Update = field(default_factory=dict)

    def aim(self, rows: slice) -> Update:
        """The targets of some candidates."""
        return self._of(self.target, rows)

    def compared(self, update: Update, rows: slice) -> Update:
        """What of some candidates' updates is compared with their targets, else zero."""
        return masked(update, self._of(self.mask, rows))

    def counting(self, name: str) -> Tensor:
        """Which entries of one parameter's update are to be met, bool like its target."""
        everything = torch.ones_like(self.target[name], dtype=torch.bool)
        return self.mask.get(name, everything)

    def _of(self, tensors: Update, rows: slice) -> Update:
        if self.observations == 1:
            return tensors
        return {name: value[rows] for name, value in tensors.items()}

    def evaluate(
        self,
        inputs: Tensor,
        labels: Tensor,
        distance: Distance,
        prior: Prior | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The candidates' objectives and their gradients.

        Args:
            inputs: ``(R, b, *input)``.
            labels: ``(R, b)`` int64, or ``(R, b, K)`` class probabilities.
            distance: Of updates from their targets.
            prior: What makes the objective of it; the distance itself if not given.

        Returns:
            ``(R,)``, ``(R, b, *input)`` and, for class probabilities, ``(R, b, K)``.
        """

        def objective(update: Update, at: Tensor, rows: slice) -> Tensor:
            value = distance(self.compared(update, rows), self.aim(rows))
            return value if prior is None else prior(value, at)

        return self.mapping.value_and_grads(objective, inputs, labels)

    def best(self, inputs: Tensor, labels: Tensor | None = None) -> Best:
        """The record of the best, at the start of a search from ``inputs``."""
        return Best(inputs, self.labels if labels is None else labels, self.observations)


class Best:
    """The best each candidate has been, by the attack's own objective.

    Nothing here waits for the device. A candidate whose objective is not a number
    never replaces what it had.

    Attributes:
        inputs: ``(R, b, *input)``.
        labels: ``(R, b)``, or ``(R, b, K)`` class probabilities where they are optimised.
        objective: ``(R,)``, infinite for a candidate that never had a finite one.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, observations: int = 1) -> None:
        self.inputs = inputs.clone()
        self.labels = labels
        self.objective = torch.full(
            (len(inputs),), torch.inf, dtype=inputs.dtype, device=inputs.device
        )
        self._observations = observations

    def update(self, inputs: Tensor, objective: Tensor, labels: Tensor | None = None) -> None:
        """Take what is better: ``(R, b, *input)``, its objectives ``(R,)`` and its labels."""
        better = objective < self.objective
        self.inputs = torch.where(like(better, inputs), inputs, self.inputs)
        self.objective = torch.where(better, objective, self.objective)
        if labels is not None:
            self.labels = torch.where(like(better, labels), labels, self.labels)

    def chosen(self) -> tuple[Tensor, Tensor]:
        """Each observation's least objective, and which candidate has it."""
        least, restart = self.objective.reshape(self._observations, -1).min(1)
        size = len(self.objective) // self._observations
        return least, restart + size * torch.arange(self._observations, device=restart.device)


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
            stop_below: Objective of each observation's best candidate that is good enough.
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

    def __call__(self, iteration: int, best: Best, finished: bool = False) -> bool:
        """Whether to go on after an iteration, counted from 1; not if it is ``finished``.

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
        last = last or finished or iteration == self._iterations
        if self._progress is None and self._stop_below is None:
            return not last
        if last or iteration % self._every == 0:
            # Of several observations the one that is least well met.
            objective = float(best.chosen()[0].max())
            last = last or (self._stop_below is not None and objective <= self._stop_below)
            if self._progress is not None:
                self._progress(iteration, self._iterations, objective)
        return not last


@dataclass(frozen=True, eq=False)
class _Ready:
    """An observation with its own search, not begun."""

    index: int
    observation: Observation
    search: Search

    def goes_with(self, other: _Ready) -> bool:
        """Whether both are about the same update map, with candidates of the same shape."""
        ours, theirs = self.observation, other.observation
        return (
            ours.facts == theirs.facts
            and self.search.start.shape == other.search.start.shape
            and self.search.labels.shape == other.search.labels.shape
            and _equal(ours.parameters, theirs.parameters)
            and _equal(ours.buffers, theirs.buffers)
            and {n: v.shape for n, v in self.search.target.items()}
            == {n: v.shape for n, v in other.search.target.items()}
        )


def _equal(one: Update, other: Update) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _joined(searches: Sequence[Search]) -> Search:
    """One search for several observations of one update map."""
    first = searches[0]
    if len(searches) == 1:
        return first

    def each(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors)).repeat_interleave(len(first.start), 0)

    hidden = {name for search in searches for name in search.mask}
    return Search(
        first.mapping,
        {name: each([search.target[name] for search in searches]) for name in first.target},
        torch.cat([search.labels for search in searches]),
        torch.cat([search.start for search in searches]),
        observations=len(searches),
        mask={name: each([search.counting(name) for search in searches]) for name in hidden},
    )


def _given(file: Path, shape: tuple[int, ...]) -> Tensor:
    """Samples to start from.

    Raises:
        AttackFailed: The file has none, or none of that shape.
    """
    try:
        given = safetensors.torch.load_file(file)
        inputs = given["inputs"]
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise AttackFailed(f"{file} has no samples to start from: {error}") from error
    if "confidence" not in given:
        # An audit keeps the clients' own samples too, for its pictures.
        raise AttackFailed(f"{file} is not of a finished cell: attacks never see clients' samples")
    if tuple(inputs.shape) != shape:
        raise AttackFailed(
            f"{file} has samples of shape {tuple(inputs.shape)} to start from; these are {shape}"
        )
    return inputs


class OptimisationAttack(Attack):
    """Optimises candidate samples until their update resembles the observed one.

    All restarts run together as one batched computation, those of several clients that
    trained the same model in the same way included; of each observation's restarts the
    one with the best own objective is returned.

    Confidence: minus the objective of the chosen restart, for each of its samples.
    """

    restarts: int = Field(
        4, ge=1, le=4096, description="candidates optimised at once from different starts"
    )
    iterations: int = Field(
        1000, ge=1, le=1_000_000, description="evaluations of the update map per restart"
    )
    initialisation: Initialisation = Field("uniform", description=INITIALISATION)
    local_steps: Literal["unroll", "one-gradient"] = Field(
        "unroll", description="unroll the client's local steps, or take its update for one gradient"
    )
    layers: tuple[str, ...] | None = Field(
        None, min_length=1, description="parameters whose update is used, by name; all if not given"
    )
    mask_zeros: bool = Field(
        False,
        description="leave out of the objective what came back as it was sent: entries that a "
        "defense held back (pruning, top-k, Soteria) say nothing",
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

    def unsupported(self, setting: Setting) -> str | None:
        if behind_embedding(setting.model, setting.input_shape) is not None:
            return "searches for pixels; this model takes tokens"
        names = {name for name, _ in setting.model.named_parameters()}
        for name in self.layers or ():
            if name not in names:
                return f"the model has no parameter {name!r}; it has {', '.join(sorted(names))}"
        if isinstance(self.initialisation, Path) and not self.initialisation.is_file():
            return (
                f"initialisation {str(self.initialisation)!r} is neither uniform, normal nor grey, "
                "nor a file"
            )
        return None

    @property
    def appetite(self) -> int:
        # A time budget is one observation's own.
        return 1 if self.budget is not None else math.ceil(_FULL / self.restarts)

    def candidates(self, observations: int) -> int:
        together = observations * self.restarts
        return together if self.chunk is None else min(together, self.chunk)

    def reconstruct(
        self, observation: Observation, seed: int, progress: Progress | None = None
    ) -> Reconstruction:
        (found,) = next(self.reconstruct_each([observation], [seed], progress)).values()
        if isinstance(found, AttackFailed):
            raise found
        return found

    def reconstruct_each(
        self,
        observations: Sequence[Observation],
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> Iterator[dict[int, Reconstruction | AttackFailed]]:
        ready = []
        for index, (observation, seed) in enumerate(zip(observations, seeds, strict=True)):
            try:
                refuse_unusable(observation)
                ready.append(_Ready(index, observation, self._prepare(observation, seed)))
            except AttackFailed as failure:
                yield {index: failure}
        while ready:
            together = self._fitting([entry for entry in ready if entry.goes_with(ready[0])])
            watch = Watch(self.iterations, self.stop_below, self.budget, progress)
            best = self._optimise(_joined([entry.search for entry in together]), watch)
            yield {
                entry.index: self._read(best, objective, chosen, entry.observation)
                for entry, objective, chosen in zip(together, *best.chosen(), strict=True)
            }
            ready = [entry for entry in ready if entry not in together]

    def _fitting(self, alike: list[_Ready]) -> list[_Ready]:
        """As many as are worth a batched computation and have room in it."""
        if len(alike) == 1 or self.budget is not None:
            return alike[:1]
        search = _joined([entry.search for entry in alike])
        plan = search.mapping.plan(search.start, search.labels)
        room = _MOST_BYTES / sum(value[0].nbytes for value in search.target.values())
        return alike[: max(1, int(min(plan.chunk, room) // self.restarts))]

    def _read(
        self, best: Best, objective: Tensor, chosen: Tensor, observation: Observation
    ) -> Reconstruction | AttackFailed:
        if not objective.isfinite():
            return AttackFailed(f"all {self.restarts} restarts of {self.kind_name()!r} diverged")
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
        mapping, precision = self._mapping(observation, facts), self._dtype
        target = {name: target[name].detach().to(precision)[None] for name in mapping.layers}
        if not any(value.any() for value in target.values()):
            raise AttackFailed("the update is zero: it says nothing about the samples")
        mask = {}
        if self.mask_zeros:
            sent = {name: observation.update[name][None] != 0 for name in mapping.layers}
            mask = {name: counts for name, counts in sent.items() if not counts.all()}
            target = {**target, **masked(target, mask)}
        generator = torch.Generator().manual_seed(seed)
        shape = (observation.samples, *observation.input_shape)
        start = self._start(shape, generator).to(next(iter(target.values())))
        labels = self._labels(observation, generator).to(start.device)
        if labels.is_floating_point():
            labels = labels.to(precision)
        return Search(mapping, target, labels, start, mask=mask)

    def _mapping(self, observation: Observation, facts: TrainingFacts) -> UpdateMap:
        """The update map to be searched, of a client that trained as ``facts`` say."""
        parameters, buffers = self._tensors(observation)
        return UpdateMap(
            observation.model, parameters, buffers, facts, layers=self.layers, chunk=self.chunk
        )

    def _tensors(self, observation: Observation) -> tuple[Update, Update]:
        """Parameters and buffers that were sent, in the type of the computation."""
        parameters, buffers = (
            {n: v.to(self._dtype) if v.is_floating_point() else v for n, v in tensors.items()}
            for tensors in (observation.parameters, observation.buffers)
        )
        return parameters, buffers

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.precision == "float64" else torch.float32

    def _start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """First candidates ``(restarts, *shape)``.

        Raises:
            AttackFailed: The samples to start from are not of that shape.
        """
        if isinstance(self.initialisation, Path):
            given = _given(self.initialisation, shape)
            noise = _GIVEN_DEVIATION * torch.randn(self.restarts, *shape, generator=generator)
            noise[0] = 0  # the first restart takes them as they are
            return given + noise
        shape = (self.restarts, *shape)
        if self.initialisation == "uniform":
            return torch.rand(shape, generator=generator)
        deviation = 0.25 if self.initialisation == "normal" else 0.01
        return 0.5 + deviation * torch.randn(shape, generator=generator)


class LabelFirstAttack(OptimisationAttack):
    """An optimisation attack that has the labels before it looks for the samples.

    They are recovered from the update (`fedleak.attacks.labels`) or known by the threat
    model. When the client took several steps, which sample was in which of them is not
    disclosed, so restarts have other orders of the labels: every other one the recovered
    order, where they are recovered, and the rest random ones.
    """

    labels: Literal["recovered", "known"] = Field(
        "recovered",
        description="labels recovered from the update, or those that the threat model grants",
    )

    def unsupported(self, setting: Setting) -> str | None:
        reason = super().unsupported(setting)
        if reason is None and self.labels == "recovered":
            reason = labels_unsupported(setting)
            return reason and f'{reason}; it can do without where labels are "known"'
        return reason

    def _labels(self, observation: Observation, generator: torch.Generator) -> Tensor:
        read = recover_labels if self.labels == "recovered" else known_labels
        labels = read(observation).expand(self.restarts, -1)
        if observation.facts.steps > 1 and self.local_steps == "unroll":
            order = torch.rand(labels.shape, generator=generator).argsort(1).to(labels.device)
            if self.labels == "recovered":
                order[::2] = torch.arange(labels.shape[1], device=labels.device)
            labels = labels.gather(1, order)
        return labels
