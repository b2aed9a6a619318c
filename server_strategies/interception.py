"""What crosses the server in a round, read without changing it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Message, RecordDict

from fedleak.errors import UpdateRejected
from fedleak.records import DISCLOSURE, FACTS, Capture, partition_name, training_facts

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
    said = _scalars_of(reply.content).get("partition_id", -1)
    return f"node-{reply.metadata.src_node_id}" if said < 0 else partition_name(int(said))


def disclosed_facts(content: RecordDict, known: Mapping[str, float]) -> dict[str, float]:
    """Collect the training facts known of one reply, by name.

    Args:
        content: The reply. Facts stand in its ConfigRecord ``"fedleak"`` and, under
            the same names with ``-`` or ``_``, in its metrics.
        known: Facts that the server knows because it set them; a reply's own win.
    """
    said = _scalars_of(content)
    if "num_examples" in said:
        said.setdefault("examples", said["num_examples"])
    return {name: value for name, value in {**known, **said}.items() if name in FACTS}


def sent_facts(content: RecordDict) -> dict[str, float]:
    """Training facts in the ConfigRecords of a message to a client, by name.

    Flower apps send a learning rate in the train config, FedProx its ``proximal-mu``.
    """
    return {
        name: value
        for record in content.config_records.values()
        for name, value in _numbers(record).items()
        if name in FACTS
    }


def _scalars_of(content: RecordDict) -> dict[str, float]:
    """Numbers in a reply's metrics and, taking precedence, in its disclosure."""
    records: list[Mapping[str, object]] = list(content.metric_records.values())
    if DISCLOSURE in content.config_records:
        records.append(content.config_records[DISCLOSURE])
    return {name: value for record in records for name, value in _numbers(record).items()}


def _numbers(record: Mapping[str, object]) -> dict[str, float]:
    # Not finite is no number: what comes from a client must not stop the server.
    return {
        name.replace("-", "_"): value
        for name, value in record.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
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


def capture_of(round: int, reply: Message, sent: Arrays, known: Mapping[str, float]) -> Capture:
    """Make the capture of one reply.

    Args:
        round: Round number, from 1.
        reply: The client's.
        sent: Arrays sent to it.
        known: Facts that the server knows because it set them.

    Raises:
        UpdateRejected: The update is unusable (see `check_update`).
    """
    received = arrays_of(reply.content)
    check_update(sent, received, reply.content)
    disclosed = disclosed_facts(reply.content, known)
    facts = training_facts(disclosed)
    seconds = reply.content.config_records.get(DISCLOSURE, ConfigRecord()).get("seconds")
    return Capture(
        round=round,
        client=client_name(reply),
        sent=sent,
        received=received,
        facts=facts,
        disclosed={} if facts else disclosed,
        metrics={
            name: value
            for record in reply.content.metric_records.values()
            for name, value in scalars(record, "").items()
        },
        seconds=seconds if isinstance(seconds, float) else None,
    )


def scalars(metrics: Mapping[str, object], prefix: str) -> dict[str, float]:
    """The scalar metrics of a record, each name with a prefix; a mean name is no metric."""
    return {
        f"{prefix}{name}": float(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and name != "partition-id"
    }
