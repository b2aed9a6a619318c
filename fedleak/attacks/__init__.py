"""Attacks: what can be made of one observation, each in its own file."""

from __future__ import annotations

from fedleak.attacks.analytic import Analytic
from fedleak.attacks.attack import Attack, Progress
from fedleak.attacks.gs import GS
from fedleak.attacks.idlg import IDLG

ATTACKS: tuple[type[Attack], ...] = (Analytic, IDLG, GS)

__all__ = ["ATTACKS", "GS", "IDLG", "Analytic", "Attack", "Progress"]
