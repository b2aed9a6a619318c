"""Defenses: what clients do against a central party that looks at their updates."""

import fedleak  # noqa: F401  # first: switches Flower's telemetry off
from clients.defenses.defense import (
    Defense,
    Metrics,
    Step,
    Turn,
    Update,
    acting,
    labels,
    received,
    released,
)
from clients.defenses.dp_sgd import DpSgd
from clients.defenses.dropout import Dropout
from clients.defenses.eigen_noise import EigenNoise
from clients.defenses.gradient_pruning import GradientPruning
from clients.defenses.quantise import Quantise
from clients.defenses.soteria import Soteria
from clients.defenses.top_k import TopK
from clients.defenses.update_noise import UpdateNoise
from clients.defenses.weight_inspection import WeightInspection
from clients.defenses.withhold import Withhold

DEFENSES: tuple[type[Defense], ...] = (
    DpSgd,
    Dropout,
    EigenNoise,
    GradientPruning,
    Quantise,
    Soteria,
    TopK,
    UpdateNoise,
    WeightInspection,
    Withhold,
)

__all__ = [
    "DEFENSES",
    "Defense",
    "DpSgd",
    "Dropout",
    "EigenNoise",
    "GradientPruning",
    "Metrics",
    "Quantise",
    "Soteria",
    "Step",
    "TopK",
    "Turn",
    "Update",
    "UpdateNoise",
    "WeightInspection",
    "Withhold",
    "acting",
    "labels",
    "received",
    "released",
]
