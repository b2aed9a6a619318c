"""Improved Deep Leakage from Gradients (Zhao, Mopuri, Bilen 2020)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedleak.attacks.matching import match
from fedleak.attacks.optimisation import (
    INITIALISATION,
    Best,
    Initialisation,
    LabelFirstAttack,
    Search,
    Watch,
    smoothness,
)


class IDLG(LabelFirstAttack):
    """The label first, exactly; then the sample, by L-BFGS on the squared distance.

    Zhao et al. 2020, Alg. 1; batches take their labels from counts. The distance is
    relative to the observed update's norm, each restart has a line search of its own, and
    pixels are searched in `Waves`.
    """

    kind: Literal["idlg"] = "idlg"
    iterations: int = Field(
        300, ge=1, le=1_000_000, description="evaluations of the update map per restart"
    )
    initialisation: Initialisation = Field("grey", description=INITIALISATION)
    tv: float = Field(0.0, ge=0, le=10, description="weight of the total variation")

    def _optimise(self, search: Search, watch: Watch) -> Best:
        prior = smoothness(self.tv, 0.0, search.start)
        return match(search, self.iterations, self.box, watch, prior)
