"""Inverting Gradients (Geiping, Bauermeister, Dröge, Moeller: NeurIPS 2020)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from fedleak.attacks.optimisation import (
    Best,
    LabelFirstAttack,
    Search,
    Watch,
    smoothness,
)
from fedleak.gradients import cosine_distance, like


class AdamAttack(LabelFirstAttack):
    """Cosine distance plus total variation, by Adam, all restarts at once.

    Total variation applies to inputs of two dimensions or more, whose last two are
    height and width, and not to flat ones. A restart whose gradient is not finite coasts
    on Adam's momentum; what counts is the best point it had.
    """

    optimiser: Literal["signed-adam", "adam"] = Field(
        "signed-adam", description="Adam on the gradient's sign, or on the gradient"
    )
    lr: float = Field(0.1, gt=0, le=10, description="first step of Adam, in pixel values 0..1")
    schedule: Literal["step", "cosine", "constant"] = Field(
        "step",
        description="lr divided by ten after 3/8, 5/8 and 7/8 of the iterations, lowered to "
        "zero along a cosine, or kept",
    )
    tv: float = Field(0.0, ge=0, le=10, description="weight of the total variation")
    relative_tv: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="weight of the total variation in parts of the distance at hand",
    )
    box: bool = Field(True, description="clamp pixels to 0..1 after each iteration")

    def _optimise(self, search: Search, watch: Watch) -> Best:
        prior = smoothness(self.tv, self.relative_tv, search.start)
        inputs = search.start.clamp(0, 1) if self.box else search.start.clone()
        optimiser = torch.optim.Adam([inputs], lr=self.lr)
        decay = self._decay(optimiser)
        best = search.best(inputs)
        for iteration in range(1, self.iterations + 1):
            objective, gradient, _ = search.evaluate(inputs, search.labels, cosine_distance, prior)
            best.update(inputs, objective)
            if not watch(iteration, best):
                break
            finite = gradient.flatten(1).isfinite().all(1)
            signed = self.optimiser == "signed-adam"
            inputs.grad = torch.where(
                like(finite, gradient), gradient.sign() if signed else gradient, 0
            )
            optimiser.step()
            decay.step()
            if self.box:
                inputs.clamp_(0, 1)
        return best

    def _decay(self, optimiser: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        if self.schedule == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.iterations)
        milestones = [self.iterations * eighths // 8 for eighths in (3, 5, 7)]
        return torch.optim.lr_scheduler.MultiStepLR(
            optimiser, milestones if self.schedule == "step" else [], gamma=0.1
        )


class GS(AdamAttack):
    """Cosine distance plus total variation, by signed Adam within the box [0, 1].

    Geiping et al., Eq. 4. Adam is given the sign of the gradient; its step is divided
    by ten after 3/8, 5/8 and 7/8 of the iterations; after each, pixels are clamped to
    [0, 1].

    The paper's weight of the total variation, ``tv``, has to suit the scale of the
    distance, which is 1e-6 for an untrained network with small weights and 0.1 for
    others, and blurs what the distance alone would find exactly. By default the weight
    is relative to the distance at hand instead: the objective is the distance times
    ``1 + relative_tv * TV``. For the paper's own objective set ``relative_tv`` to 0.
    """

    kind: Literal["gs"] = "gs"
    relative_tv: float = Field(
        30.0,
        ge=0,
        le=1e6,
        description="weight of the total variation in parts of the distance at hand",
    )
