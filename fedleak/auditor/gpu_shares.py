"""How many actors share a GPU where nobody says it: as many as its memory holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fedleak.attacks import Attack
from fedleak.auditor.cells import Cell
from fedleak.auditor.observe import observe
from fedleak.auditor.subject import Subject
from fedleak.captures import CaptureStore
from fedleak.gradients import UpdateMap
from fedleak.gradients.batching import SHARE

_CONTEXT = 2**30
"""Allowed for what a process takes of a GPU before it computes: the CUDA context, the
kernels that libraries load and the workspaces that they reserve, in bytes."""

_MODEL_COPIES = 4
"""The model as sent, the update, and both once more in the attack's precision."""

_RAY_UNITS = 10_000
"""Ray counts resources in parts of this many. Rounded up, the last share would not fit."""


def gpu_share(memory: float, need: float, gpus: int, most: int) -> float:
    """Part of a GPU to book per actor: 1 / n with n actors on each, rounded down as Ray counts.

    Args:
        memory: Bytes of the smallest GPU.
        need: Bytes that one actor takes; infinite where that is not known.
        gpus: Number of GPUs, >= 1.
        most: Actors in all that there is work and room for, >= 1.
    """
    actors = max(1, min(math.ceil(most / gpus), int(memory // need)))
    return math.floor(_RAY_UNITS / actors) / _RAY_UNITS


def actor_need(groups: Sequence[Sequence[Cell]], store: CaptureStore, subject: Subject) -> float:
    """Bytes of a GPU that any one of some groups of cells takes, with the process itself.

    A group takes the model and all the candidates that its task evaluates at a time, so that
    actors that share a GPU batch as many as one that has it alone. The first group of each
    task stands for its others. Infinite where the update map cannot be differentiated in
    samples (tokens, for example).

    Raises:
        CaptureError: A capture is damaged, or of another model.
    """
    first = {group[0].settings: group for group in reversed(groups)}
    return _CONTEXT + max(_bytes_taken(group, store, subject) for group in first.values())


def _bytes_taken(group: Sequence[Cell], store: CaptureStore, subject: Subject) -> float:
    cell = group[0]
    observation = observe(store.load(cell.round, cell.client), subject)
    mapping = UpdateMap(
        observation.model, observation.parameters, observation.buffers, observation.facts
    )
    inputs = torch.zeros(1, observation.samples, *observation.input_shape)
    labels = torch.zeros(1, observation.samples, dtype=torch.int64)
    try:
        each = mapping.footprint(inputs, labels)
    except RuntimeError:
        return math.inf
    together = cell.task.candidates(len(group)) if isinstance(cell.task, Attack) else 1
    tensors = (*observation.parameters.values(), *observation.buffers.values())
    model = sum(tensor.nbytes for tensor in tensors)
    # Of the memory that is free, candidates are given this part (see `fitting`).
    return _MODEL_COPIES * model + together * each / SHARE
