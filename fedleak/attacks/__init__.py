"""Attacks: what can be made of one observation, each in its own file."""

from __future__ import annotations

from fedleak.attacks.analytic import Analytic
from fedleak.attacks.attack import Attack, Progress
from fedleak.attacks.dlg import DLG
from fedleak.attacks.feature_matching import FeatureMatching
from fedleak.attacks.gauss_newton import GaussNewton
from fedleak.attacks.gs import GS
from fedleak.attacks.idlg import IDLG
from fedleak.attacks.representation import Representation

ATTACKS: tuple[type[Attack], ...] = (
    Analytic,
    DLG,
    IDLG,
    GS,
    GaussNewton,
    Representation,
    FeatureMatching,
)

__all__ = [
    "ATTACKS",
    "DLG",
    "GS",
    "IDLG",
    "Analytic",
    "Attack",
    "FeatureMatching",
    "GaussNewton",
    "Progress",
    "Representation",
]
