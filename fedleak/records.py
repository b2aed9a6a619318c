"""Frozen records that cross module borders, with their shapes.

Letters used for shapes: ``n`` samples, ``b`` samples in one observed update, ``R``
candidates optimised together, ``*input`` the shape of one sample (``C, H, W`` for an
image), ``K`` classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch import nn

Indices = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[np.generic]]


DISCLOSURE = "fedleak"
"""Name of the ConfigRecord in which a client says who it is and how it trained."""

_FILE_NAME = 100
"""Characters that a client's name may have in that of a file, with room for the rest of it."""

REFUSED = 100
"""Code of the error with which a client answers that it takes no part in a round."""


def partition_name(partition: int) -> str:
    """Name of the client that holds a partition: ``client-007``."""
    return f"client-{partition:03d}"


def partition_of(client: str) -> int | None:
    """Partition id in a client's name; None for a client known by its node id only."""
    kind, _, number = client.partition("-")
    return int(number) if kind == "client" else None


def sum_name(clients: Sequence[str]) -> str:
    """Name of the sum of several clients' updates, ascending: ``sum-000-003+007``."""
    partitions = sorted(p for p in map(partition_of, clients) if p is not None)
    if len(partitions) < len(clients):
        return f"sum-{'+'.join(clients)}"
    runs: list[list[int]] = []
    for partition in partitions:
        if runs and runs[-1][-1] == partition - 1:
            runs[-1].append(partition)
        else:
            runs.append([partition])
    parts = [f"{r[0]:03d}" if len(r) == 1 else f"{r[0]:03d}-{r[-1]:03d}" for r in runs]
    return f"sum-{'+'.join(parts)}"


def file_name(client: str) -> str:
    """A client's name as it stands in the names of files, which file systems limit: of a
    sum of many its beginning and a digest."""
    if len(client) <= _FILE_NAME:
        return client
    return f"{client[: _FILE_NAME - 13]}-{hashlib.sha256(client.encode()).hexdigest()[:12]}"


def members_of(client: str) -> list[str]:
    """The clients behind a capture: of a sum all that it is of, else the client itself."""
    kind, _, named = client.partition("-")
    if kind != "sum":
        return [client]
    members: list[str] = []
    for part in named.split("+"):
        first, _, last = part.partition("-")
        if not first.isdecimal():
            members.append(part)
        else:
            members += map(partition_name, range(int(first), int(last or first) + 1))
    return members


@dataclass(frozen=True)
class Dataset:
    """Labelled samples.

    Attributes:
        inputs: ``(n, *input)``. Images are ``(n, C, H, W)``, either uint8 in 0..255
            or floating point in [0, 1]; `samples` hides the difference. Texts are
            tokens ``(n, length)``, int64 from 0.
        labels: ``(n,)`` int64 in ``0..classes-1``.
        classes: Number of classes ``K``.
        attributes: Further columns, each ``(n,)``, by name (a writer id, a gender).
        vocabulary: Of texts, the word that each token stands for.
    """

    inputs: npt.NDArray[np.generic]
    labels: Indices
    classes: int
    attributes: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    vocabulary: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample, ``*input``."""
        return tuple(self.inputs.shape[1:])

    def samples(self, indices: Indices) -> npt.NDArray[np.float32] | Indices:
        """As a model takes them, ``(len(indices), *input)``.

        Pixels are float32 in [0, 1], tokens int64.
        """
        chosen = np.ascontiguousarray(self.inputs[indices])
        if self.vocabulary:
            return chosen.astype(np.int64)
        if chosen.dtype == np.uint8:
            return chosen.astype(np.float32) / np.float32(255)
        return chosen.astype(np.float32)


@dataclass(frozen=True)
class DataSplits:
    """What a data source gives: samples to train on and samples held out."""

    train: Dataset
    test: Dataset


@dataclass(frozen=True)
class TrainingFacts:
    """What a client discloses of one round of local training.

    Attributes:
        lr: Learning rate of local SGD, > 0.
        steps: Optimiser steps taken, >= 1. One step makes the update a gradient.
        batch_size: Samples per step, >= 1; expected ones where each step samples its batch
            anew (DP-SGD), which does not disclose how many they were.
        examples: Samples the client holds and draws its batches from, >= 1.
        momentum: SGD momentum, >= 0. Its buffer starts at zero every round.
        weight_decay: L2 penalty that SGD adds to the gradient, >= 0.
        proximal_mu: FedProx's pull towards the model sent, >= 0.
        train_mode: Whether dropout and batch norm were in training mode.
    """

    lr: float
    steps: int
    batch_size: int
    examples: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal_mu: float = 0.0
    train_mode: bool = True


FACTS = frozenset(fact.name for fact in fields(TrainingFacts)) | {"epochs"}
"""Names under which training facts are disclosed."""


def training_facts(known: Mapping[str, float]) -> TrainingFacts | None:
    """Training facts from those known by name (`FACTS`).

    ``epochs`` may stand in place of ``steps``. None where learning rate, batch size,
    steps or the number of examples remain unknown or are not positive.
    """
    if not all(known.get(name, 0) > 0 for name in ("lr", "batch_size", "examples")):
        return None
    per_epoch = math.ceil(known["examples"] / known["batch_size"])
    steps = known.get("steps") or known.get("epochs", 0) * per_epoch
    if not steps > 0:
        return None
    return TrainingFacts(
        lr=float(known["lr"]),
        steps=int(steps),
        batch_size=int(known["batch_size"]),
        examples=int(known["examples"]),
        momentum=float(known.get("momentum", 0.0)),
        weight_decay=float(known.get("weight_decay", 0.0)),
        proximal_mu=float(known.get("proximal_mu", 0.0)),
        train_mode=bool(known.get("train_mode", True)),
    )


@dataclass(frozen=True)
class Setting:
    """What updates come from: what attacks, defenses and measures are asked to work with.

    Attributes:
        model: The architecture as a client trains it, with weights that are sent.
        facts: What a client discloses of its training.
        input_shape: ``*input`` of one sample.
        classes: Number of classes ``K``.
        data: The federation's samples with their attributes; None where they are not known, and
            always for attacks and defenses.
    """

    model: nn.Module
    facts: TrainingFacts
    input_shape: tuple[int, ...]
    classes: int
    data: DataSplits | None = None


@dataclass(frozen=True)
class Capture:
    """What the central party kept of one client in one round.

    Attributes:
        round: Round number, from 1.
        client: ``client-007`` by partition id, or ``node-<id>`` where a foreign app
            does not say which partition it is. Under secure aggregation a group of them,
            ``sum-000-003+007``, of which the weighted mean update was seen.
        sent: State dict sent to the client, by name.
        received: State dict it sent back, same names and shapes.
        facts: Disclosed training facts; None where a foreign app disclosed too few.
        disclosed: By name, what it disclosed where that was too few.
        metrics: Numbers that the client reported of the round, by name.
        seconds: How long the client says that it trained and defended; None where it does
            not say. It differs from run to run and is no part of what must repeat.
    """

    round: int
    client: str
    sent: Arrays
    received: Arrays
    facts: TrainingFacts | None
    disclosed: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class Observation:
    """Exactly what the threat model lets an attack see. Never contains truth.

    Attributes:
        model: The architecture; its own parameter values mean nothing.
        parameters: Trainable parameters sent to the client, by name.
        buffers: Buffers sent to the client (batch norm statistics), by name.
        update: ``(sent - received) / lr`` by parameter name: the sum of the steps'
            gradients, so exactly the gradient when the client took one step.
        facts: The client's disclosed training facts.
        input_shape: ``*input`` of one sample.
        classes: Number of classes ``K``.
        labels: ``(b,)`` int64, labels that the threat model grants the attacker; None
            where, as usual, it grants none.
    """

    model: nn.Module
    parameters: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor]
    update: Mapping[str, torch.Tensor]
    facts: TrainingFacts
    input_shape: tuple[int, ...]
    classes: int
    labels: torch.Tensor | None = None

    @property
    def samples(self) -> int:
        """Distinct samples behind the update, ``b`` (each held sample counts once)."""
        return min(self.facts.examples, self.facts.steps * self.facts.batch_size)


@dataclass(frozen=True)
class Reconstruction:
    """What an attack made of an observation.

    Attributes:
        inputs: ``(m, *input)`` reconstructed samples in [0, 1]. ``m`` may be smaller
            or larger than ``b``: an extraction returns what it found.
        labels: ``(m,)`` int64, or None where the attack says nothing about labels.
        confidence: ``(m,)``, higher is better, the attack's own measure and never
            one that knows the truth; its meaning is the attack's to document.
    """

    inputs: torch.Tensor
    labels: torch.Tensor | None
    confidence: torch.Tensor


@dataclass(frozen=True)
class Truth:
    """A client's real samples in one round. Scoring alone may hold one.

    Attributes:
        inputs: ``(b, *input)`` float32 in [0, 1], or tokens ``(b, length)`` int64;
            distinct samples.
        labels: ``(b,)`` int64.
    """

    inputs: npt.NDArray[np.float32] | Indices
    labels: Indices
