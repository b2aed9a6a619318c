"""Deep Leakage from Gradients (Zhu, Liu, Han: NeurIPS 2019)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedleak.attacks.matching import match
from fedleak.attacks.optimisation import (
    INITIALISATION,
    Best,
    Initialisation,
    OptimisationAttack,
    Search,
    Watch,
)
from fedleak.records import Observation


class DLG(OptimisationAttack):
    """Sample and label together, by L-BFGS on the squared distance.

    Zhu et al. 2019, Alg. 1. Each sample has a vector of logits, normal at the start,
    whose softmax stands for its label; the label returned is the largest of the
    optimised ones. It needs no part of the model in particular, and no label, but the
    labels and the samples' order in a batch make its search harder than `IDLG`'s. The
    distance is relative to the observed update's norm, each restart has a line search of
    its own, and pixels are searched in `Waves`: from grey, as the noise of another start
    would stay where the update says little.
    """

    kind: Literal["dlg"] = "dlg"
    restarts: int = Field(
        8, ge=1, le=4096, description="candidates optimised at once from different starts"
    )
    iterations: int = Field(
        3000, ge=1, le=1_000_000, description="evaluations of the update map per restart"
    )
    initialisation: Initialisation = Field("grey", description=INITIALISATION)

    def _optimise(self, search: Search, watch: Watch) -> Best:
        return match(search, self.iterations, self.box, watch)

    def _labels(self, observation: Observation, generator: torch.Generator) -> Tensor:
        shape = (self.restarts, observation.samples, observation.classes)
        return torch.randn(shape, generator=generator)
