"""Clients chosen and ordered by partition id, so that a seed fixes a whole run.

Flower samples node ids, which are drawn anew in every run, and sums replies in the
order in which they arrive, which differs from engine to engine. Both would make the
same scenario and seed give different models.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore.run import Run

from fedleak.errors import QuorumLost
from fedleak.records import DISCLOSURE
from fedleak.seeding import stream


class VisibleNodes(Grid):
    """A grid that shows a strategy only the nodes it is to use."""

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        self._grid = grid
        self._nodes = list(nodes)

    def get_node_ids(self) -> Iterable[int]:
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

    Args:
        inner: The strategy that aggregates; it trains on all nodes that it sees.
        seed: The scenario's seed.
        clients: Clients in the federation; their partition ids are ``0..clients-1``.
        clients_per_round: Clients asked each round.
        roster: Partition id by node id; filled by a first exchange with the nodes.
        patience: Seconds to wait for all clients to connect.

    Raises:
        QuorumLost: From `configure_train`, if fewer than ``clients`` nodes connect.
    """

    def __init__(
        self,
        inner: Strategy,
        *,
        seed: int,
        clients: int,
        clients_per_round: int,
        roster: dict[int, int],
        patience: float = 120.0,
    ) -> None:
        self.inner = inner
        self.seed = seed
        self.clients = clients
        self.clients_per_round = clients_per_round
        self.roster = roster
        self.patience = patience

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose this round's clients, then configure as the wrapped strategy does."""
        return self.inner.configure_train(
            server_round, arrays, config, self._round_view(server_round, grid)
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate replies in the order of partition ids."""
        return self.inner.aggregate_train(server_round, self._in_order(replies))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Evaluate on the clients of the round."""
        return self.inner.configure_evaluate(
            server_round, arrays, config, self._round_view(server_round, grid)
        )

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate replies in the order of partition ids."""
        return self.inner.aggregate_evaluate(server_round, self._in_order(replies))

    def summary(self) -> None:
        """As the wrapped strategy does."""
        self.inner.summary()

    def _round_view(self, server_round: int, grid: Grid) -> VisibleNodes:
        self._meet(grid)
        rng = stream(self.seed, "sampling", round=server_round)
        chosen = rng.choice(self.clients, size=self.clients_per_round, replace=False)
        node_of = {partition: node for node, partition in self.roster.items()}
        return VisibleNodes(grid, [node_of[int(partition)] for partition in sorted(chosen)])

    def _meet(self, grid: Grid) -> None:
        """Wait until every partition has a node, and ask new nodes which one they hold."""
        deadline = time.monotonic() + self.patience
        while True:
            connected = set(grid.get_node_ids())
            for node in set(self.roster) - connected:
                del self.roster[node]
            unknown = [
                Message(content=RecordDict(), message_type=MessageType.QUERY, dst_node_id=node)
                for node in sorted(connected - set(self.roster))
            ]
            if unknown:
                left = max(1.0, deadline - time.monotonic())
                for reply in grid.send_and_receive(unknown, timeout=left):
                    if reply.has_content():
                        identity = reply.content.config_records[DISCLOSURE]
                        partition = identity["partition-id"]
                        assert isinstance(partition, int)
                        self.roster[reply.metadata.src_node_id] = partition
            if set(range(self.clients)) <= set(self.roster.values()):
                return
            if time.monotonic() > deadline:
                raise QuorumLost(
                    f"{len(self.roster)} of {self.clients} clients connected within "
                    f"{self.patience:.0f} s"
                )
            time.sleep(0.2)

    def _in_order(self, replies: Iterable[Message]) -> list[Message]:
        return sorted(replies, key=lambda reply: self.roster[reply.metadata.src_node_id])
