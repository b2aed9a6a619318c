"""What crosses the server in a round, read without changing it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from flwr.app import Message, RecordDict

from fedleak.errors import UpdateRejected
from fedleak.records import DISCLOSURE, Capture, TrainingFacts, partition_name

Arrays = dict[str, npt.NDArray[np.generic]]


def arrays_of(content: RecordDict) -> Arrays:
    """The model's arrays in a message, by name.

    Raises:
        UpdateRejected: The message does not hold exactly one ArrayRecord.
    """
    records = list(content.array_records.values())
    if len(records) != 1:
        raise UpdateRejected(f"message holds {len(records)} ArrayRecords, one is expected")
    return {name: array.numpy() for name, array in records[0].items()}


def client_name(reply: Message) -> str:
    """Name a reply's sender by its partition id, or by node id if it does not say."""
    said = _scalars_of(reply.content).get("partition_id")
    return f"node-{reply.metadata.src_node_id}" if said is None else partition_name(int(said))


def training_facts(
    content: RecordDict, known: Mapping[str, float | int | bool]
) -> TrainingFacts | None:
    """Collect the disclosed facts of one reply.

    Args:
        content: The reply. Facts stand in its ConfigRecord ``"fedleak"`` and, under
            the same names with ``-`` or ``_``, in its metrics.
        known: Facts that the server knows because it set them. ``epochs`` may stand in
            place of ``steps``.

    Returns:
        The facts, or None where learning rate, batch size, steps or the number of
        examples remain unknown.
    """
    facts = {**known, **_scalars_of(content)}
    facts.setdefault("examples", facts.get("num_examples", 0))
    if not all(facts.get(name) for name in ("lr", "batch_size", "examples")):
        return None
    per_epoch = math.ceil(facts["examples"] / facts["batch_size"])
    steps = facts.get("steps") or facts.get("epochs", 0) * per_epoch
    if not steps:
        return None
    return TrainingFacts(
        lr=float(facts["lr"]),
        steps=int(steps),
        batch_size=int(facts["batch_size"]),
        examples=int(facts["examples"]),
        momentum=float(facts.get("momentum", 0.0)),
        weight_decay=float(facts.get("weight_decay", 0.0)),
        proximal_mu=float(facts.get("proximal_mu", 0.0)),
        train_mode=bool(facts.get("train_mode", True)),
    )


def _scalars_of(content: RecordDict) -> dict[str, float | int]:
    """Numbers in a reply's metrics and, taking precedence, in its disclosure."""
    records: list[Mapping[str, object]] = list(content.metric_records.values())
    if DISCLOSURE in content.config_records:
        records.append(content.config_records[DISCLOSURE])
    return {
        name.replace("-", "_"): value
        for record in records
        for name, value in record.items()
        if isinstance(value, (int, float))
    }


def check_update(sent: Arrays, received: Arrays, content: RecordDict) -> None:
    """Refuse an update that Flower would average without a word.

    Raises:
        UpdateRejected: Names or shapes differ from what was sent, a value is not
            finite, or the number of examples is not positive.
    """
    if missing := sorted(set(sent) ^ set(received)):
        raise UpdateRejected(f"arrays differ from those sent: {', '.join(missing)}")
    for name, array in received.items():
        if array.shape != sent[name].shape:
            raise UpdateRejected(f"{name} has shape {array.shape}, {sent[name].shape} was sent")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise UpdateRejected(f"{name} contains NaN or infinity")
    for metrics in content.metric_records.values():
        examples = metrics.get("num-examples")
        if isinstance(examples, (int, float)) and not examples > 0:
            raise UpdateRejected(f"num-examples is {examples}, a positive number is expected")


def capture_of(
    round: int, reply: Message, sent: Arrays, known: Mapping[str, float | int | bool]
) -> Capture:
    """Make the capture of one reply.

    Raises:
        UpdateRejected: The update is unusable (see `check_update`).
    """
    received = arrays_of(reply.content)
    check_update(sent, received, reply.content)
    return Capture(
        round=round,
        client=client_name(reply),
        sent=sent,
        received=received,
        facts=training_facts(reply.content, known),
    )


def scalars(metrics: Mapping[str, object], prefix: str) -> dict[str, float]:
    """The scalar metrics of a record, each name with a prefix."""
    return {
        f"{prefix}{name}": float(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float))
    }
