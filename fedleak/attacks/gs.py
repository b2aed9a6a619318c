"""Inverting Gradients (Geiping, Bauermeister, Dröge, Moeller: NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedleak.attacks.optimisation import (
    Best,
    OptimisationAttack,
    Search,
    cosine_distance,
    like,
    total_variation,
)


class GS(OptimisationAttack):
    """Cosine distance plus total variation, by signed Adam within the box [0, 1].

    Geiping et al., Eq. 4. Adam is given the sign of the gradient; its step is divided
    by ten after 3/8, 5/8 and 7/8 of the iterations; after each, pixels are clamped to
    [0, 1]. Total variation applies to inputs of two dimensions or more, whose last two
    are height and width, and not to flat ones. A restart whose gradient is not finite
    coasts on Adam's momentum; what counts is the best point it had.

    On the wire's exact updates the distance alone is enough and any total variation
    blurs; it earns its weight where an update is noisy or a batch large. An untrained
    network with small weights has cosine distances of 1e-6, so the default is small.
    """

    kind: Literal["gs"] = "gs"
    lr: float = Field(0.1, gt=0, le=10, description="first step of Adam, in pixel values 0..1")
    tv: float = Field(1e-6, ge=0, le=10, description="weight of the total variation")

    def _optimise(self, search: Search, report: Callable[[int, Best], None]) -> Best:
        smoothed = self.tv > 0 and search.start.dim() >= 4

        def penalty(inputs: Tensor) -> Tensor:
            return self.tv * total_variation(inputs)

        inputs = search.start.clamp(0, 1)
        optimiser = torch.optim.Adam([inputs], lr=self.lr)
        decay = torch.optim.lr_scheduler.MultiStepLR(
            optimiser, [self.iterations * eighths // 8 for eighths in (3, 5, 7)], gamma=0.1
        )
        best = Best(inputs)
        for iteration in range(1, self.iterations + 1):
            objective, gradient = search.evaluate(
                inputs, cosine_distance, penalty if smoothed else None
            )
            best.update(inputs, objective)
            finite = gradient.flatten(1).isfinite().all(1)
            inputs.grad = torch.where(like(finite, gradient), gradient.sign(), 0)
            optimiser.step()
            decay.step()
            inputs.clamp_(0, 1)
            report(iteration, best)
        return best
