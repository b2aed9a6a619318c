"""The honest-but-curious central party: follows the protocol and keeps everything."""

from __future__ import annotations

from typing import Literal

from flwr.serverapp.strategy import Strategy

from fedleak.captures import CaptureStore
from server_strategies.central_party import CentralParty, Party, Served
from server_strategies.roster import Roster


class HonestButCurious(CentralParty):
    """Wraps any Flower strategy and keeps each client's update before aggregation.

    What the wrapped strategy sends is sent as it is, and what clients return is handed
    on as it is, in the same order, so the global model is bit for bit the one that the
    wrapped strategy alone would make, except that unusable updates are left out
    (`CentralParty` says which, and what the arguments are)::

        strategy = HonestButCurious(FedAvg(), CaptureStore("captured"))
    """


class HonestButCuriousParty(Party):
    """Keeps every update and follows the protocol otherwise (`HonestButCurious`)."""

    kind: Literal["honest-but-curious"] = "honest-but-curious"

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
        return HonestButCurious(
            inner, store, quorum=quorum, roster=roster, secure_aggregation=secure_aggregation
        )
