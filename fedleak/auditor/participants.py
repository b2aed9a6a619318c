"""Who took part in a deployment, and whose samples may be looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from fedleak.captures import RunLayout
from fedleak.scenario import Scenario


@dataclass(frozen=True)
class Participants:
    """A deployment's clients as they stood when it ended or, while it runs, stand.

    In a simulation there is nobody to ask: all clients are made up by the scenario. In a
    deployment a client is scored only where the scenario says that its data set is an
    audit data set and the client opted in to it.

    Attributes:
        opted_in: Names of the clients that may be scored.
        private: Names of the other ones.
        refused: Why others were not let in.
    """

    opted_in: frozenset[str]
    private: frozenset[str]
    refused: tuple[str, ...]

    @property
    def notes(self) -> Iterator[str]:
        """What a reader of the results must know."""
        if self.private:
            whom = f"Only {_listed(self.opted_in)}" if self.opted_in else "No client"
            yield (
                f"A deployment's server has no truth. {whom} opted in to the audit data set, "
                f"without which nothing is scored: of {_listed(self.private)} there are the "
                "attacks' own reconstructions and confidence."
            )
        for reason in self.refused:
            yield f"Refused: {reason}."


def participants(layout: RunLayout, scenario: Scenario) -> Participants | None:
    """Read who took part; None where the run is no deployment."""
    if scenario.federation.engine != "deployment":
        return None
    record = json.loads(layout.participants.read_bytes())
    clients = frozenset(record["clients"])
    opted_in = frozenset(
        name
        for name, member in record["clients"].items()
        if scenario.federation.audit_data and member["audit_data"]
    )
    return Participants(opted_in, clients - opted_in, tuple(record["refused"].values()))


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
