"""Who takes part: which partition a node holds, and who is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flwr.app import ConfigRecord

from fedleak.records import partition_name
from fedleak.versions import versions


@dataclass(frozen=True)
class Member:
    """A node that said who it is.

    Attributes:
        partition: The partition that it holds.
        audit_data: Whether it opted in to being scored: it trains on the scenario's data
            set, which the auditor holds as well.
        versions: Its version of each package that must be the same as the server's.
    """

    partition: int
    audit_data: bool
    versions: Mapping[str, str]

    @classmethod
    def from_identity(cls, identity: ConfigRecord) -> Member:
        """Read what a client answers when it is asked who it is."""
        partition = identity["partition-id"]
        assert isinstance(partition, int)
        return cls(
            partition=partition,
            audit_data=bool(identity.get("audit-data", False)),
            versions={name: str(identity.get(name, "unknown")) for name in versions()},
        )

    @property
    def mismatch(self) -> str | None:
        """Why its versions do not go with the server's; None where they do.

        Another version may train otherwise or disclose other facts, and an audit would
        take that for leakage or for the lack of it.
        """
        ours = versions()
        differing = [
            f"{name} {said}, the server has {name} {ours[name]}"
            for name, said in self.versions.items()
            if said != ours[name]
        ]
        if not differing:
            return None
        return f"{partition_name(self.partition)} has {'; '.join(differing)}: install the same"


class Roster(dict[int, int]):
    """Partition id by node id, of the nodes that take part.

    Attributes:
        members: What each node said of itself, by node id.
        refused: Why a node may not take part, by node id.
        missing: Partitions that are asked in this round and have no node.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.members: dict[int, Member] = {}
        self.refused: dict[int, str] = {}
        self.missing: set[int] = set()

    def admit(self, node: int, member: Member) -> None:
        """Take a node in. A client that comes back has a new node, which counts from now on."""
        for former in [n for n, partition in self.items() if partition == member.partition]:
            del self[former]
        self.members[node] = member
        self[node] = member.partition

    def forget(self, nodes: Iterable[int]) -> None:
        """Take out nodes that are not connected any more."""
        for node in nodes:
            del self[node]

    def as_record(self) -> dict[str, Any]:
        """What is written down of it: the clients by name, and the refusals by node."""
        return {
            "clients": {
                partition_name(member.partition): {**asdict(member), "node": node}
                for node, member in self.members.items()
            },
            "refused": {f"node-{node}": reason for node, reason in self.refused.items()},
        }
