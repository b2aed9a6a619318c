"""Trap weights: models made so that updates give their samples away."""

from fedleak.traps.rows import trap_rows
from fedleak.traps.trap import NoTrap, set_trap, trapped_layer
from fedleak.traps.tuning import ScalingSearch, best_scaling

__all__ = ["NoTrap", "ScalingSearch", "best_scaling", "set_trap", "trap_rows", "trapped_layer"]
