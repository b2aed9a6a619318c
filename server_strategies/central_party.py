"""What every central party does: it keeps what each client was sent and sent back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from logging import INFO

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedleak.captures import CaptureStore
from fedleak.components import Component
from fedleak.errors import Problem, QuorumLost, UpdateRejected, nearest
from fedleak.records import FACTS, REFUSED, Capture, partition_name, partition_of
from server_strategies.interception import (
    Arrays,
    arrays_of,
    capture_of,
    client_name,
    scalars,
    sent_facts,
)
from server_strategies.roster import Roster
from server_strategies.secure_aggregation import groups_of, summed


class CentralParty(Strategy):
    """Wraps any Flower strategy and keeps each client's update before aggregation.

    The base of the central parties. As it is, it changes nothing on the way; what a party
    changes it says in `outgoing` and `aggregate`. Updates that Flower would average
    without a word although they ruin the model (NaN, wrong shapes, no examples) are
    recorded as rejected and left out. Goes outermost, around every other wrapper.

    Args:
        inner: The strategy that samples clients and aggregates.
        store: Where captures go, one commit a round.
        disclosed: Training facts that the server knows because it set them (``lr``,
            ``batch_size``, ``epochs`` or ``steps``, ``momentum``, ``weight_decay``,
            ``proximal_mu``). Those in the train config it sends come on top, and what
            a client discloses itself takes precedence over both.
        quorum: Share in [0, 1] of the asked clients that must deliver usable updates.
        roster: Who takes part, where known; names clients that never answer, and those
            that were not even there to be asked.
        secure_aggregation: Simulate secure aggregation: captures are sums over groups of at
            least so many clients (`server_strategies.secure_aggregation`). Of a group that
            loses clients it is the sum of those that delivered. Whom a rejected or refused
            update is of is still known.

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
        roster: Roster | None = None,
        secure_aggregation: int | None = None,
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
        self.roster = roster if roster is not None else Roster()
        self.secure_aggregation = secure_aggregation
        self._groups: list[list[int]] = []
        self._said: dict[int, int] = {}
        self._sent: dict[int, tuple[Arrays, dict[str, float]]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy choose and remember what is sent to whom."""
        self.store.check_new(server_round)
        messages = list(self.inner.configure_train(server_round, arrays, config, grid))
        self.outgoing(server_round, messages)
        # Flower puts one RecordDict into every message: decode each of them once.
        decoded: dict[int, tuple[Arrays, dict[str, float]]] = {}
        self._sent = {}
        for message in messages:
            record = message.content
            if id(record) not in decoded:
                decoded[id(record)] = arrays_of(record), sent_facts(record)
            self._sent[message.metadata.dst_node_id] = decoded[id(record)]
        # By partition, as far as they are known.
        nodes = sorted(self._sent, key=lambda node: (self.partition(node) or 0, node))
        self._groups = groups_of(nodes, self.secure_aggregation or 1)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Capture every reply, then let the wrapped strategy aggregate them."""
        replies = list(replies)
        captures: dict[str, Capture] = {}
        captured: dict[int, Capture] = {}
        rejected: dict[str, str] = {}
        refused: dict[str, str] = {}
        handed_on: list[Message] = []
        absent = set(self._sent)
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                if reply.error.code == REFUSED:
                    absent.discard(node)
                    refused[self._name(node)] = reply.error.reason or "no reason given"
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
                captures[capture.client] = captured[node] = capture
                if (partition := partition_of(capture.client)) is not None:
                    self._said[node] = partition
                handed_on.append(reply)
        asked = len(self._sent) + len(self.roster.missing)
        self.store.commit(
            server_round,
            self._seen(captured),
            absent=[
                *(self._name(node) for node in absent),
                *(partition_name(partition) for partition in self.roster.missing),
            ],
            rejected=rejected,
            refused=refused,
        )
        # Captured parameters are as large as the model times the clients: let them go.
        self._sent = {}
        if len(captures) < self.quorum * asked:
            raise QuorumLost(
                f"round {server_round}: {len(captures)} of {asked} clients delivered a usable "
                f"update, the quorum is {self.quorum:.0%}{_first_reason(replies, rejected)}"
            )
        arrays, metrics = self.aggregate(server_round, handed_on)
        if metrics is not None:
            self.store.record_metrics(server_round, scalars(metrics, "clients/"))
        return arrays, metrics

    def _seen(self, captured: Mapping[int, Capture]) -> list[Capture]:
        """What the party learns of the updates delivered: each, or sums over groups."""
        if self.secure_aggregation is None:
            return list(captured.values())
        delivered = [[node for node in group if node in captured] for group in self._groups]
        return [
            summed([captured[node] for node in group], captured[self.aim(group)])
            for group in delivered
            if group
        ]

    def aim(self, group: list[int]) -> int:
        """Whose model a group's sum is looked at from, where members were sent several."""
        return group[0]

    def together_with(self, nodes: Collection[int]) -> set[int]:
        """Nodes whose updates the party cannot tell from those of the given ones."""
        return {n for group in self._groups if not set(group).isdisjoint(nodes) for n in group}

    def outgoing(self, server_round: int, messages: list[Message]) -> None:
        """Change what goes to clients, message by message, before it is remembered.

        Flower puts one RecordDict into every message: to change a message, give it
        another one.
        """

    def aggregate(
        self, server_round: int, replies: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Make the next global model of the replies that are usable or errors."""
        return self.inner.aggregate_train(server_round, replies)

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

    def partition(self, node: int) -> int | None:
        """The partition that a node holds; None while nobody has said it."""
        return self.roster.get(node, self._said.get(node))

    def _name(self, node: int) -> str:
        partition = self.partition(node)
        return f"node-{node}" if partition is None else partition_name(partition)

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


@dataclass(frozen=True)
class Served:
    """The federation that a central party serves.

    Attributes:
        model: The architecture with its initial weights.
        input_shape: ``*input`` of one sample.
        train_mode: Whether clients train in train mode.
        seed: The scenario's seed.
        clients: Clients in the federation.
        rounds: Rounds of training.
        similar: ``(b, *input)``, samples of the server's own that are like the clients',
            as many as a client trains on in a round.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    train_mode: bool
    seed: int
    clients: int
    rounds: int
    similar: npt.NDArray[np.generic]


class Party(Component, ABC):
    """A central party: its fields are what it is set to do, `wrap` makes its strategy."""

    @abstractmethod
    def wrap(
        self,
        inner: Strategy,
        store: CaptureStore,
        served: Served,
        *,
        quorum: float,
        roster: Roster,
        secure_aggregation: int | None = None,
    ) -> Strategy:
        """Put this central party around the federation's strategy.

        Args:
            inner: The strategy that samples clients and aggregates.
            store: Where captures go.
            served: The federation.
            quorum: Share of the asked clients that must deliver usable updates.
            roster: Who takes part; filled as clients connect.
            secure_aggregation: Of how many clients at least only a sum is seen; None where
                each client's update is.
        """

    def problems(self, served: Served) -> Iterable[Problem]:
        """Settings that do not fit the federation."""
        return ()

    def model_sent(self, served: Served) -> nn.Module:
        """The model with the weights that an attacked client is sent at first.

        Raises:
            NoTrap: The party cannot do to this model what it does.
        """
        return served.model
