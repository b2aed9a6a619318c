"""Trap weights: models made so that updates give their samples away."""

from fedleak.traps.rows import are_trap_rows, trap_rows
from fedleak.traps.trap import NoTrap, set_trap, trapped_layer
from fedleak.traps.tuning import ScalingSearch, best_scaling

__all__ = [
    "NoTrap",
    "ScalingSearch",
    "are_trap_rows",
    "best_scaling",
    "set_trap",
    "trap_rows",
    "trapped_layer",
]
