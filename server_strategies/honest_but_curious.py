"""The honest-but-curious central party: follows the protocol and keeps everything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from logging import INFO
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedleak.captures import CaptureStore
from fedleak.components import Component
from fedleak.errors import QuorumLost, UpdateRejected, nearest
from fedleak.records import FACTS, Capture, partition_name
from server_strategies.interception import (
    Arrays,
    arrays_of,
    capture_of,
    client_name,
    scalars,
    sent_facts,
)


class HonestButCurious(Strategy):
    """Wraps any Flower strategy and keeps each client's update before aggregation.

    What the wrapped strategy sends is sent as it is, and what clients return is handed
    on as it is, in the same order, so the global model is bit for bit the one that the
    wrapped strategy alone would make. The one exception are updates that Flower would
    average without a word although they ruin the model (NaN, wrong shapes, no
    examples): they are recorded as rejected and left out.

    Goes outermost, around every other strategy wrapper::

        strategy = HonestButCurious(FedAvg(), CaptureStore("captured"))

    Args:
        inner: The strategy that samples clients and aggregates.
        store: Where captures go, one commit a round.
        disclosed: Training facts that the server knows because it set them (``lr``,
            ``batch_size``, ``epochs`` or ``steps``, ``momentum``, ``weight_decay``,
            ``proximal_mu``). Those in the train config it sends come on top, and what
            a client discloses itself takes precedence over both.
        quorum: Share in [0, 1] of the asked clients that must deliver usable updates.
        roster: Partition id by node id, where known; names clients that never answer.

    Raises:
        TypeError: ``inner`` is not of the Message API's strategies.
        ValueError: A name in ``disclosed`` is no training fact.
        ResourceError: From `configure_train`, if the store has the round already.
        QuorumLost: From `aggregate_train`, after the round was committed.
    """

    def __init__(
        self,
        inner: Strategy,
        store: CaptureStore,
        *,
        disclosed: Mapping[str, float] | None = None,
        quorum: float = 0.0,
        roster: Mapping[int, int] | None = None,
    ) -> None:
        if not isinstance(inner, Strategy):
            raise TypeError(
                f"{type(inner).__module__}.{type(inner).__name__} is not a strategy of Flower's "
                "Message API; wrap one from flwr.serverapp.strategy"
            )
        for name in disclosed or ():
            if name not in FACTS:
                raise ValueError(
                    f"disclosed has {name!r}, which is no training fact; there are: "
                    f"{', '.join(sorted(FACTS))}.{nearest(name, FACTS)}"
                )
        self.inner = inner
        self.store = store
        self.disclosed = dict(disclosed or {})
        self.quorum = quorum
        self.roster = roster if roster is not None else {}
        self._sent: dict[int, tuple[Arrays, dict[str, float]]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy choose and remember what it sends to whom."""
        self.store.check_new(server_round)
        messages = list(self.inner.configure_train(server_round, arrays, config, grid))
        # Flower puts one RecordDict into every message: decode each of them once.
        decoded: dict[int, tuple[Arrays, dict[str, float]]] = {}
        self._sent = {}
        for message in messages:
            record = message.content
            if id(record) not in decoded:
                decoded[id(record)] = arrays_of(record), sent_facts(record)
            self._sent[message.metadata.dst_node_id] = decoded[id(record)]
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Capture every reply, then let the wrapped strategy aggregate them."""
        replies = list(replies)
        captures: dict[str, Capture] = {}
        rejected: dict[str, str] = {}
        handed_on: list[Message] = []
        absent = set(self._sent)
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                handed_on.append(reply)
                continue
            absent.discard(node)
            try:
                sent, told = self._sent[node]
                capture = capture_of(server_round, reply, sent, {**self.disclosed, **told})
                if capture.client in captures:
                    raise UpdateRejected(f"a second update under the name {capture.client}")
            except UpdateRejected as reason:
                rejected[self._free_name(reply, captures)] = str(reason)
            else:
                captures[capture.client] = capture
                handed_on.append(reply)
        asked = len(self._sent)
        self.store.commit(
            server_round,
            list(captures.values()),
            absent=[self._name(node) for node in absent],
            rejected=rejected,
        )
        # Captured parameters are as large as the model times the clients: let them go.
        self._sent = {}
        if len(captures) < self.quorum * asked:
            raise QuorumLost(
                f"round {server_round}: {len(captures)} of {asked} clients delivered a usable "
                f"update, the quorum is {self.quorum:.0%}{_first_reason(replies, rejected)}"
            )
        arrays, metrics = self.inner.aggregate_train(server_round, handed_on)
        if metrics is not None:
            self.store.record_metrics(server_round, scalars(metrics, "clients/"))
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the wrapped strategy does."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """As the wrapped strategy does; the result is kept beside the round's captures."""
        metrics = self.inner.aggregate_evaluate(server_round, replies)
        if metrics is not None:
            self.store.record_metrics(server_round, scalars(metrics, "clients/heldout-"))
        return metrics

    def summary(self) -> None:
        """Say where captures go, then as the wrapped strategy does.

        A relative path is relative to the process that runs the ServerApp: under
        ``flwr run`` that is the SuperLink, wherever it was started.
        """
        log(INFO, "\t├──> Updates are captured in %s", self.store.layout.root.resolve())
        self.inner.summary()

    def _name(self, node: int) -> str:
        return partition_name(self.roster[node]) if node in self.roster else f"node-{node}"

    def _free_name(self, reply: Message, taken: Mapping[str, Capture]) -> str:
        name = client_name(reply)
        return f"node-{reply.metadata.src_node_id}" if name in taken else name


def _first_reason(replies: Iterable[Message], rejected: Mapping[str, str]) -> str:
    """Why the first client fell out, as the end of a sentence."""
    for name, reason in rejected.items():
        return f"; {name}: {reason}"
    for reply in replies:
        if reply.has_error():
            reason = (reply.error.reason or "no reason given").strip().splitlines()[-1]
            return f"; a client failed with {reason}"
    return ""


class HonestButCuriousParty(Component):
    """Keeps every update and follows the protocol otherwise (`HonestButCurious`)."""

    kind: Literal["honest-but-curious"] = "honest-but-curious"

    def wrap(
        self, inner: Strategy, store: CaptureStore, *, quorum: float, roster: Mapping[int, int]
    ) -> Strategy:
        """Put this central party around the federation's strategy."""
        return HonestButCurious(inner, store, quorum=quorum, roster=roster)
