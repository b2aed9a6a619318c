"""Clients chosen and ordered by partition id, so that a seed fixes a whole run.

Flower samples node ids, which are drawn anew in every run, and sums replies in the
order in which they arrive, which differs from engine to engine. Both would make the
same scenario and seed give different models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore.run import Run

from fedleak.errors import QuorumLost
from fedleak.records import DISCLOSURE, partition_name
from fedleak.seeding import stream
from server_strategies.roster import Member, Roster

_POLL_SECONDS = 0.2
_TELL_SECONDS = 5.0
_NAMED = 5  # missing clients that a message names


class VisibleNodes(Grid):
    """A grid that shows a strategy only the nodes it is to use."""

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        self._grid = grid
        self._nodes = list(nodes)

    def get_node_ids(self) -> list[int]:
        """The visible nodes."""
        return list(self._nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The visible nodes."""
        return [node for node in self._grid.get_nodes() if node.node_id in self._nodes]

    def set_run(self, run: Run) -> None:
        """As the grid behind it does."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """As the grid behind it does."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As the grid behind it does."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the grid behind it does."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the grid behind it does."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As the grid behind it does."""
        return self._grid.send_and_receive(messages, timeout=timeout)


class SampleByPartition(Strategy):
    """Shows the wrapped strategy this round's clients, and their replies in order.

    The first round waits for all clients. Later ones, and the first when its patience is
    at an end, go on while a quorum is connected; a client that joins late or comes back
    takes part from the next round on.

    Args:
        inner: The strategy that aggregates; it trains on all nodes that it sees.
        seed: The scenario's seed.
        clients: Clients in the federation; their partition ids are ``0..clients-1``.
        clients_per_round: Clients asked each round.
        roster: Who takes part; filled by an exchange with each node that connects.
        patience: Seconds to wait for clients to connect.
        quorum: Share in [0, 1] of the clients that must be connected.
        on_met: Called when nodes have said who they are, before they are asked to train.

    Raises:
        QuorumLost: From `configure_train`, if too few clients are connected.
    """

    def __init__(
        self,
        inner: Strategy,
        *,
        seed: int,
        clients: int,
        clients_per_round: int,
        roster: Roster,
        patience: float = 120.0,
        quorum: float = 1.0,
        on_met: Callable[[], None] = lambda: None,
    ) -> None:
        self.inner = inner
        self.seed = seed
        self.clients = clients
        self.clients_per_round = clients_per_round
        self.roster = roster
        self.patience = patience
        self.quorum = quorum
        self.on_met = on_met
        self._begun = False
        self._asked: list[int] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose this round's clients, then configure as the wrapped strategy does."""
        rng = stream(self.seed, "sampling", round=server_round)
        chosen = rng.choice(self.clients, size=self.clients_per_round, replace=False)
        self._asked = [int(partition) for partition in sorted(chosen)]
        self._wait_for(self._asked, grid)
        self.roster.missing = set(self._asked) - set(self.roster.values())
        return self.inner.configure_train(server_round, arrays, config, self._view(grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate replies in the order of partition ids."""
        return self.inner.aggregate_train(server_round, self._in_order(replies))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Evaluate on those clients of the round that are still there."""
        self.roster.forget(set(self.roster) - set(grid.get_node_ids()))
        view = self._view(grid)
        # Flower would wait for a node to evaluate on.
        if not view.get_node_ids():
            return []
        return self.inner.configure_evaluate(server_round, arrays, config, view)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate replies in the order of partition ids."""
        return self.inner.aggregate_evaluate(server_round, self._in_order(replies))

    def summary(self) -> None:
        """As the wrapped strategy does."""
        self.inner.summary()

    def _view(self, grid: Grid) -> VisibleNodes:
        """This round's clients, as far as they are connected."""
        node_of = {partition: node for node, partition in self.roster.items()}
        return VisibleNodes(grid, [node_of[p] for p in self._asked if p in node_of])

    def _wait_for(self, partitions: Sequence[int], grid: Grid) -> None:
        """Wait until enough of the federation is there, and at least one that is asked."""
        started = time.monotonic()
        told = -_TELL_SECONDS
        while True:
            waited = time.monotonic() - started
            self._meet(grid, max(1.0, self.patience - waited))
            here = set(self.roster.values()) & set(range(self.clients))
            enough = len(here) >= self.quorum * self.clients and not here.isdisjoint(partitions)
            over = waited > self.patience
            if len(here) == self.clients or (enough and (self._begun or over)):
                self._begun = True
                return
            if over:
                raise QuorumLost(
                    f"{self._count(here)} within {self.patience:.0f} s, the quorum is "
                    f"{self.quorum:.0%}"
                )
            if waited - told >= _TELL_SECONDS:
                told = waited
                log(INFO, "Waiting: %s", self._count(here))
            time.sleep(_POLL_SECONDS)

    def _count(self, here: set[int]) -> str:
        absent = [partition_name(p) for p in range(self.clients) if p not in here]
        listed = ", ".join(absent[:_NAMED]) + (", ..." if len(absent) > _NAMED else "")
        return "; ".join(
            [
                f"{len(here)} of {self.clients} clients connected ({listed} missing)",
                *self.roster.refused.values(),
            ]
        )

    def _meet(self, grid: Grid, timeout: float) -> None:
        """Forget the nodes that left, and ask new ones who they are."""
        connected = set(grid.get_node_ids())
        self.roster.forget(set(self.roster) - connected)
        unknown = connected - set(self.roster) - set(self.roster.refused)
        questions = [
            Message(content=RecordDict(), message_type=MessageType.QUERY, dst_node_id=node)
            for node in sorted(unknown)
        ]
        if not questions:
            return
        for reply in grid.send_and_receive(questions, timeout=timeout):
            if reply.has_content():
                node = reply.metadata.src_node_id
                member = Member.from_identity(reply.content.config_records[DISCLOSURE])
                reason = member.mismatch or self._stranger(member)
                if reason is not None:
                    self.roster.refused[node] = reason
                    log(WARNING, "Refused: %s", reason)
                    continue
                if member.partition in self.roster.values():
                    # One that comes back is a new node, and Flower may not miss the old one yet.
                    name = partition_name(member.partition)
                    log(WARNING, "A second node says that it is %s: it counts from now on", name)
                self.roster.admit(node, member)
        self.on_met()

    def _stranger(self, member: Member) -> str | None:
        if 0 <= member.partition < self.clients:
            return None
        last = partition_name(self.clients - 1)
        return f"{partition_name(member.partition)} is none of {partition_name(0)} to {last}"

    def _in_order(self, replies: Iterable[Message]) -> list[Message]:
        # Of a node that died a SuperLink says so itself, in its own name.
        return sorted(
            replies, key=lambda reply: self.roster.get(reply.metadata.src_node_id, self.clients)
        )
