"""Cells: one attack on one capture or one measure of it, and the files with their outcome."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import nn

from fedleak.attacks import Attack, Progress
from fedleak.auditor.observe import observe
from fedleak.auditor.plans import recorded_plans
from fedleak.auditor.subject import Subject
from fedleak.captures import CaptureStore, RunLayout, write_atomic
from fedleak.errors import AttackFailed, CaptureError, MeasureFailed
from fedleak.measures import Evidence, Measure, Value
from fedleak.records import (
    DataSplits,
    Observation,
    Reconstruction,
    Setting,
    file_name,
    partition_of,
)
from fedleak.seeding import derive, reproducible

Status = Literal["done", "failed", "unsupported"]

_NEEDED = {
    "truth": "it needs the client's samples, which nobody here knows",
    "data": "it needs the federation's data, which nobody here knows",
    "release": "it needs to train as the client does; only a scenario says how, and not for the "
    "sum of several clients",
}


@dataclass(frozen=True)
class Cell:
    """One attack on one capture, or one measure of it.

    Attributes:
        round: Round number, from 1.
        client: The client's name; of a measure of a whole round, the one that stands for all.
        task: The attack or the measure, with its parameters.
        assumptions: What the user stated of a foreign app, by name.
        labels: The samples' labels, ascending, where the threat model grants them.
    """

    round: int
    client: str
    task: Attack | Measure
    assumptions: Mapping[str, Any]
    labels: tuple[int, ...] | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """All that the outcome depends on beside the capture, by name."""
        granted = {} if self.labels is None else {"known_labels": True}
        return {**self.task.model_dump(mode="json"), **self.assumptions, **granted}

    @property
    def settings(self) -> str:
        """Short name of the task and its parameters, ``gs-1a2b3c``, unique among all settings."""
        digest = hashlib.sha256(json.dumps(self.parameters).encode()).hexdigest()[:6]
        return f"{str(self.task.kind).replace(':', '.')}-{digest}"

    @property
    def name(self) -> str:
        """Unique in a run: ``round-0001.client-000.gs-1a2b3c``."""
        return f"round-{self.round:04d}.{file_name(self.client)}.{self.settings}"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell, as its JSON file says.

    It is one of an attack, whose reconstruction lies in a file beside it, or one of a measure,
    whose values it holds.
    """

    cell: str
    round: int
    client: str
    attack: str | None
    parameters: dict[str, Any]
    status: Status
    reason: str
    seconds: float
    samples: int
    measure: str | None = None
    values: Sequence[dict[str, Any]] = ()
    note: str | None = None


def run_cells(
    cells: Sequence[Cell],
    store: CaptureStore,
    subject: Subject,
    device: torch.device,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Run one attack on several captures, together where that is faster, or one measure.

    A cell's outcome is written before it is yielded; a finished file is a finished cell.
    An attack that cannot work, diverges or breaks gives an outcome that says so; it
    never stops the other cells.

    Args:
        cells: All of the same attack or measure.
        store: Where the captures are and the outcomes go.
        subject: The model; of attacks without truth, measures may need it.
        device: Where to compute.
        progress: Told now and then how far the attack or the measure is.

    Raises:
        CaptureError: A capture itself is damaged, or of another model.
        ScenarioError: A capture's training facts are too few, or no such facts can be.
    """
    attack = cells[0].task
    if isinstance(attack, Measure):
        for cell in cells:
            yield _measured(cell, attack, store, subject, device, progress)
        return
    waiting: dict[str, tuple[Cell, Observation]] = {}
    for cell in cells:
        observation = observe(store.load(cell.round, cell.client), subject, device, cell.labels)
        said = attack.unsupported(setting_of(observation))
        if said is not None:
            yield _record(cell, store, "unsupported", said, samples=observation.samples)
        else:
            waiting[cell.name] = cell, observation
    started = time.perf_counter()
    reason = ""
    try:
        for made in _attacked(attack, list(waiting.values()), store, subject, progress):
            share = (time.perf_counter() - started) / len(made)
            for cell, result in made:
                _, observation = waiting.pop(cell.name)
                yield _finish(cell, observation, result, share, store, subject)
            started = time.perf_counter()
    except AttackFailed as failure:
        reason = str(failure)
    except Exception:
        reason = traceback.format_exc()
    spent = time.perf_counter() - started
    left = list(waiting.values())
    for cell, observation in left:
        if len(left) > 1:  # who is at fault is found one by one
            yield from run_cells([cell], store, subject, device, progress)
        else:
            yield _record(cell, store, "failed", reason, spent, observation.samples)


def _measured(
    cell: Cell,
    measure: Measure,
    store: CaptureStore,
    subject: Subject,
    device: torch.device,
    progress: Progress | None,
) -> Outcome:
    """Compute one measure of one capture; unlike an attack it may look at the truth."""
    evidence = evidence_of(cell, store, subject, device, progress)
    samples = evidence.observation.samples
    if (said := unmeasurable(measure, evidence)) is not None:
        return _record(cell, store, "unsupported", said, samples=samples)
    started = time.perf_counter()
    values: list[Value] = []
    reason = ""
    try:
        with reproducible(evidence.seed), recorded_plans(store.layout):
            values = list(measure.measure(evidence))
    except MeasureFailed as failure:
        reason = str(failure)
    except Exception:
        reason = traceback.format_exc()
    return _record(
        cell,
        store,
        "failed" if reason else "done",
        reason,
        time.perf_counter() - started,
        samples,
        values=values,
    )


def setting_of(observation: Observation, data: DataSplits | None = None) -> Setting:
    """What a capture comes from, its model with the weights that the client was sent."""
    return Setting(
        _as_sent(observation),
        observation.facts,
        observation.input_shape,
        observation.classes,
        data,
    )


def evidence_of(
    cell: Cell,
    store: CaptureStore,
    subject: Subject,
    device: torch.device,
    progress: Progress | None = None,
) -> Evidence:
    """What the measure of a cell computes from."""
    capture = store.load(cell.round, cell.client)
    observation = observe(capture, subject, device)
    return Evidence(
        observation=observation,
        truth=subject.truth(cell.round, cell.client),
        data=subject.data,
        release=None
        if subject.release is None
        else subject.release(observation, cell.round, cell.client),
        seed=_seed(cell, subject),
        progress=(lambda step, total: None)
        if progress is None
        else lambda step, total: progress(step, total, math.nan),
        reported=capture.metrics,
    )


def unmeasurable(measure: Measure, evidence: Evidence) -> str | None:
    """Why a measure cannot work on what is known, in a sentence; None if it can."""
    missing = sorted(need for need in measure.needs if getattr(evidence, need) is None)
    if missing:
        return "; ".join(_NEEDED[need] for need in missing)
    return measure.unsupported(setting_of(evidence.observation, evidence.data))


def _attacked(
    attack: Attack,
    todo: Sequence[tuple[Cell, Observation]],
    store: CaptureStore,
    subject: Subject,
    progress: Progress | None,
) -> Iterator[list[tuple[Cell, Reconstruction | AttackFailed]]]:
    """What the attack makes of each, those that were attacked together in one list."""
    if not todo:
        return
    seeds = [_seed(cell, subject) for cell, _ in todo]
    observations = [observation for _, observation in todo]
    together = attack.reconstruct_each(observations, seeds, progress)
    while True:
        # Not around the yield: what the caller does has nothing to do with the attack.
        with reproducible(seeds[0]), recorded_plans(store.layout):
            made = next(together, None)
        if made is None:
            return
        yield [(todo[index][0], result) for index, result in made.items()]


def _finish(
    cell: Cell,
    observation: Observation,
    result: Reconstruction | AttackFailed,
    seconds: float,
    store: CaptureStore,
    subject: Subject,
) -> Outcome:
    samples = observation.samples
    if not isinstance(result, AttackFailed):
        try:
            _check(result, subject)
        except AttackFailed as failure:
            result = failure
        else:
            return _record(cell, store, "done", "", seconds, samples, result)
    return _record(cell, store, "failed", str(result), seconds, samples)


def _as_sent(observation: Observation) -> nn.Module:
    """The model with the weights that the client was sent: what they are may matter."""
    model = observation.model
    sent: dict[int, torch.Tensor] = {
        id(tensor): nn.Parameter(observation.parameters[name].cpu(), tensor.requires_grad)
        for name, tensor in model.named_parameters()
    }
    sent |= {
        id(tensor): observation.buffers[name].cpu()
        for name, tensor in model.named_buffers()
        if name in observation.buffers
    }
    # Of what is replaced deepcopy copies nothing.
    return copy.deepcopy(model, sent)


def record_failure(cell: Cell, store: CaptureStore, reason: str) -> Outcome:
    """Write that a cell came to nothing for a reason outside the attack."""
    return _record(cell, store, "failed", reason)


def _record(
    cell: Cell,
    store: CaptureStore,
    status: Status,
    reason: str,
    seconds: float = 0.0,
    samples: int = 0,
    reconstruction: Reconstruction | None = None,
    values: Sequence[Value] = (),
) -> Outcome:
    outcome = Outcome(
        cell=cell.name,
        round=cell.round,
        client=cell.client,
        attack=cell.task.kind if isinstance(cell.task, Attack) else None,
        parameters=cell.parameters,
        status=status,
        reason=reason,
        seconds=seconds,
        samples=samples,
        measure=cell.task.kind if isinstance(cell.task, Measure) else None,
        note=cell.task.note if isinstance(cell.task, Measure) else None,
        values=[vars(value) for value in values],
    )
    folder = store.layout.cells
    if reconstruction is not None:
        tensors = {"inputs": reconstruction.inputs, "confidence": reconstruction.confidence}
        if reconstruction.labels is not None:
            tensors["labels"] = reconstruction.labels
        content = safetensors.torch.save(
            {k: t.detach().cpu().contiguous() for k, t in tensors.items()}
        )
        write_atomic(folder / f"{cell.name}.safetensors", content)
    write_atomic(folder / f"{cell.name}.json", json.dumps(vars(outcome), indent=1).encode())
    return outcome


def finished(layout: RunLayout) -> Iterator[Outcome]:
    """Outcomes of all finished cells, by name.

    Raises:
        CaptureError: A cell's file is damaged; names it and says what to do.
    """
    for path in sorted(layout.cells.glob("*.json")):
        try:
            yield Outcome(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise CaptureError(
                f"{path} cannot be read ({error}); remove it and the cell is run again"
            ) from error


def reconstruction_of(layout: RunLayout, outcome: Outcome) -> Reconstruction:
    """What a finished cell reconstructed.

    Raises:
        CaptureError: The file is missing or damaged; names it.
    """
    path = layout.cells / f"{outcome.cell}.safetensors"
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise CaptureError(
            f"{path} cannot be read ({error}); remove it and {path.stem}.json, "
            "and the cell is run again"
        ) from error
    return Reconstruction(
        inputs=tensors["inputs"],
        labels=tensors.get("labels"),
        confidence=tensors["confidence"],
    )


def _check(reconstruction: Reconstruction, subject: Subject) -> None:
    """A score of what is no sample would be a made-up one.

    Raises:
        AttackFailed: The samples are not finite or not of the observed shape.
    """
    inputs = reconstruction.inputs
    if tuple(inputs.shape[1:]) != subject.input_shape:
        raise AttackFailed(
            f"the attack gave samples of shape {tuple(inputs.shape[1:])}, "
            f"the data has {subject.input_shape}"
        )
    if not inputs.isfinite().all():
        raise AttackFailed("the reconstruction has values that are not finite")


def _seed(cell: Cell, subject: Subject) -> int:
    return derive(
        subject.seed, f"attack/{cell.name}", client=partition_of(cell.client), round=cell.round
    )
