"""Central parties as Flower strategies: they intercept updates before aggregation."""

import fedleak  # noqa: F401  # first: switches Flower's telemetry off
from server_strategies.aggregation import Aggregation
from server_strategies.honest_but_curious import HonestButCurious, HonestButCuriousParty

PARTIES = (HonestButCuriousParty,)

__all__ = ["PARTIES", "Aggregation", "HonestButCurious", "HonestButCuriousParty"]
