"""Central parties as Flower strategies: they intercept updates before aggregation."""

import fedleak  # noqa: F401  # first: switches Flower's telemetry off
from server_strategies.aggregation import Aggregation
from server_strategies.central_party import CentralParty, Party, Served
from server_strategies.honest_but_curious import HonestButCurious, HonestButCuriousParty
from server_strategies.trap_weights import TrapWeights, TrapWeightsParty

PARTIES: tuple[type[Party], ...] = (HonestButCuriousParty, TrapWeightsParty)

__all__ = [
    "PARTIES",
    "Aggregation",
    "CentralParty",
    "HonestButCurious",
    "HonestButCuriousParty",
    "Party",
    "Served",
    "TrapWeights",
    "TrapWeightsParty",
]
