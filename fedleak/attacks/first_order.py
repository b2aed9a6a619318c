"""Searches by the gradient of a distance and a prior, one step an iteration."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from fedleak.attacks.gates import SoftGates
from fedleak.attacks.optimisation import (
    Best,
    Distance,
    LabelFirstAttack,
    Search,
    Watch,
    smoothness,
)
from fedleak.gradients import cosine_distance, like

_MOMENTUM = 0.9

_HARD = 1e-3
"""Of the first temperature of gates, what is left at the end."""


# Fields whose defaults differ from attack to attack.
Rate = Annotated[
    float,
    Field(
        gt=0,
        le=1e6,
        description="first step of Adam, in pixel values 0..1; of SGD, what gradients are "
        "multiplied by",
    ),
]
Schedule = Annotated[
    Literal["step", "cosine", "constant"],
    Field(
        description="lr divided by ten after 3/8, 5/8 and 7/8 of the iterations, lowered to "
        "zero along a cosine, or kept"
    ),
]
RelativeWeight = Annotated[
    float,
    Field(
        ge=0,
        le=1e6,
        description="weight of the total variation in parts of the distance at hand",
    ),
]
Decay = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        description="what the weight `tv` comes down to, step by step, by the last iteration, in "
        "parts of the first",
    ),
]
Colour = Annotated[
    float,
    Field(
        ge=0,
        le=100,
        description="weight of colour beside that of brightness in the total variation of images "
        "with three channels; 1 takes each channel by itself",
    ),
]
Smoothing = Annotated[
    float,
    Field(
        ge=0,
        le=100,
        description="width over which gates of ReLU and max pooling open at the start, in standard "
        "deviations of what they are given; a thousandth of it at the end; 0 leaves them",
    ),
]


class FirstOrderAttack(LabelFirstAttack):
    """Cosine distance plus total variation, by Adam or SGD, all restarts at once.

    Total variation applies to inputs of two dimensions or more, whose last two are
    height and width, and not to flat ones. A restart whose gradient is not finite coasts
    on the optimiser's momentum; what counts is the best point it had.
    """

    optimiser: Literal["signed-adam", "adam", "sgd"] = Field(
        "signed-adam",
        description="Adam on the gradient's sign, Adam on the gradient, or SGD with momentum 0.9",
    )
    lr: Rate = 0.1
    schedule: Schedule = "step"
    tv: float = Field(0.0, ge=0, le=10, description="weight of the total variation")
    relative_tv: RelativeWeight = 0.0
    colour: Colour = 1.0
    tv_decay: Decay = 1.0
    smoothing: Smoothing = 0.0
    box: bool = Field(True, description="clamp pixels to 0..1 after each iteration")

    def _distance(self, search: Search) -> Distance:
        """Of updates from their targets."""
        return cosine_distance

    def _optimise(self, search: Search, watch: Watch) -> Best:
        distance = self._distance(search)
        prior = smoothness(self.tv, self.relative_tv, search.start, self.colour)
        inputs = search.start.clamp(0, 1) if self.box else search.start.clone()
        optimiser: Optimizer
        if self.optimiser == "sgd":
            optimiser = SGD([inputs], lr=self.lr, momentum=_MOMENTUM)
        else:
            optimiser = Adam([inputs], lr=self.lr)
        decay = self._decay(optimiser)
        best = search.best(inputs)
        for iteration in range(1, self.iterations + 1):
            done = iteration / self.iterations
            eased = prior and partial(prior, share=self.tv_decay**done)
            gates = SoftGates(self.smoothing * _HARD**done) if self.smoothing else nullcontext()
            with gates:
                objective, gradient, _ = search.evaluate(inputs, search.labels, distance, eased)
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

    def _decay(self, optimiser: Optimizer) -> LRScheduler:
        if self.schedule == "cosine":
            return CosineAnnealingLR(optimiser, self.iterations)
        milestones = [self.iterations * eighths // 8 for eighths in (3, 5, 7)]
        return MultiStepLR(optimiser, milestones if self.schedule == "step" else [], gamma=0.1)
