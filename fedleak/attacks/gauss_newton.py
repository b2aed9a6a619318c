"""Levenberg-Marquardt on the update map, without ever forming its Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedleak.attacks.gs import GS
from fedleak.attacks.optimisation import (
    INITIALISATION,
    Best,
    Initialisation,
    LabelFirstAttack,
    Search,
    Watch,
)
from fedleak.attacks.waves import Waves
from fedleak.gradients import like, squared_distance

_RESIDUAL = 0.03
"""Norm of CG's residual over that of the gradient at which a step is exact enough: a
linearisation that a step leaves behind is not worth more (Nocedal & Wright, Sec. 7.1)."""

_FIRST_DAMPING = 1e-3
"""Damping of the first step, as a part of the curvature along the gradient."""

_LOOK = 10
"""CG steps between two looks at whether all candidates are done."""

_REFUSALS = 6
"""Steps in a row that gained nothing after which a candidate stands still: its damping
has then grown by 2^21."""


class GaussNewton(LabelFirstAttack):
    """Nonlinear least squares ``||u(x) - u0||^2`` over the samples.

    First-order attacks need thousands of steps because the update map's Jacobian ``J``
    is badly conditioned in the pixels. Here each step solves the linearised problem
    ``(J'J + damping) d = -J'(u(x) - u0)`` by conjugate gradients, with one JVP and one
    VJP a step (Nocedal & Wright, Numerical Optimization, Sec. 10.3; Alg. 5.2). The
    damping follows the ratio of the gain to what the linearisation promised (Nielsen,
    Damping Parameter in Marquardt's Method, IMM-REP-1999-05). Every candidate has its
    own damping and its own CG; one that meets values that are not finite takes no step
    and, where it began so, stays out. The search ends when no candidate gains any more.

    Steps and damping are measured in `Waves`: a few steps of CG then find what is large
    in an image, and what the update says little about stays smooth.

    It converges where the map is smooth (sigmoid, tanh, softplus; average pooling). At
    the kinks of ReLU and max pooling a linearisation holds only nearby: ``warm_start``
    lets `GS` bring the candidates near first.
    """

    kind: Literal["gauss-newton"] = "gauss-newton"
    restarts: int = Field(
        1, ge=1, le=4096, description="candidates optimised at once from different starts"
    )
    iterations: int = Field(
        50, ge=1, le=1_000_000, description="linearisations of the update map per restart"
    )
    initialisation: Initialisation = Field("grey", description=INITIALISATION)
    cg_steps: int = Field(
        60, ge=1, le=10_000, description="steps of conjugate gradients per linearisation, at most"
    )
    warm_start: int = Field(
        0, ge=0, le=1_000_000, description="iterations of GS before the first linearisation"
    )

    def _optimise(self, search: Search, watch: Watch) -> Best:
        inputs = search.start
        if self.warm_start:
            first = GS(iterations=self.warm_start, box=self.box)
            inputs = first._optimise(search, watch.warming_up()).inputs
        best = search.best(inputs)
        size = search.mapping.plan(inputs, search.labels).chunk
        walks = [
            _Walk(search, inputs, slice(at, min(at + size, len(inputs))), self.box)
            for at in range(0, len(inputs), size)
        ]
        for iteration in range(1, self.iterations + 1):
            for walk in walks:
                if walk.moving:
                    walk.step(self.cg_steps)
            best.update(
                torch.cat([walk.inputs for walk in walks]),
                torch.cat([walk.squares for walk in walks]),
            )
            moving = any(walk.moving for walk in walks)
            if not watch(iteration, best, finished=not moving):
                break
        return best


class _Walk:
    """Levenberg-Marquardt of several candidates, each with a damping of its own.

    Attributes:
        inputs: ``(R, b, *input)``, where the candidates are.
        squares: ``(R,)``, the relative squared distance of their updates to the target.
    """

    def __init__(self, search: Search, inputs: Tensor, rows: slice, box: bool) -> None:
        self.inputs = inputs[rows].clamp(0, 1) if box else inputs[rows]
        self.squares = inputs.new_full((len(self.inputs),), torch.inf)
        self._mapping = search.mapping
        self._target = search.aim(rows)
        self._compared = partial(search.compared, rows=rows)
        self._labels = search.labels[rows]
        self._box = box
        self._damping = torch.zeros_like(self.squares)
        self._growth = torch.full_like(self.squares, 2.0)
        self._waves = Waves(self.inputs)

    @property
    def moving(self) -> bool:
        """Whether a candidate may still gain by a step."""
        return bool((self._growth <= 2.0**_REFUSALS).any())

    def step(self, cg_steps: int) -> None:
        """Linearise, solve, and move the candidates that gain by it."""
        line = self._mapping.linearise(self.inputs, self._labels)
        update = self._compared(line.update)
        self.squares = squared_distance(update, self._target)
        residual = {name: update[name] - value for name, value in self._target.items()}
        downhill = -line.vjp(residual)
        free = torch.ones_like(downhill, dtype=torch.bool)
        if self._box:
            # A pixel at an edge that would leave the box stays where it is.
            free = ~((self.inputs <= 0) & (downhill < 0) | (self.inputs >= 1) & (downhill > 0))

        def pixels(variables: Tensor) -> Tensor:
            return torch.where(free, self._waves.pixels(variables), 0)

        def adjoint(pixels: Tensor) -> Tensor:
            return self._waves.pixels(torch.where(free, pixels, 0))

        def curvature(direction: Tensor) -> Tensor:
            return adjoint(line.vjp(self._compared(line.jvp(pixels(direction)))))

        downhill = adjoint(downhill)
        slope = _dot(downhill, downhill)
        largest = _dot(downhill, curvature(downhill)) / slope
        self._damping = torch.where(self._damping > 0, self._damping, _FIRST_DAMPING * largest)
        move = _conjugate_gradients(curvature, downhill, self._damping, cg_steps)
        promised = _dot(move, downhill) + self._damping * _dot(move, move)
        trial = self.inputs + pixels(move)
        if self._box:
            trial = trial.clamp(0, 1)
        with torch.no_grad():
            update = self._compared(self._mapping(trial, self._labels))
            squares = squared_distance(update, self._target)
        scale = sum(value.flatten(1).square().sum(1) for value in self._target.values())
        gain = (self.squares - squares) * scale / promised
        better = squares < self.squares
        self.inputs = torch.where(like(better, trial), trial, self.inputs)
        self.squares = torch.where(better, squares, self.squares)
        eased = self._damping * (1 - (2 * gain - 1) ** 3).clamp(min=1 / 3)
        self._damping = torch.where(better, eased, self._damping * self._growth)
        self._growth = torch.where(better, 2.0, 2 * self._growth)


def _conjugate_gradients(
    curvature: Callable[[Tensor], Tensor], rhs: Tensor, damping: Tensor, steps: int
) -> Tensor:
    """Solve ``(curvature + damping) x = rhs`` for each candidate of ``rhs`` ``(R, ...)``."""
    solution = torch.zeros_like(rhs)
    residual = direction = rhs
    squares = _dot(rhs, rhs)
    enough = squares * _RESIDUAL**2
    for step in range(steps):
        active = squares > enough
        if step % _LOOK == 0 and not active.any():
            break
        product = curvature(direction) + like(damping, direction) * direction
        along = _dot(direction, product)
        active = active & (along > 0)
        length = torch.where(active, squares / along, 0)
        solution = solution + torch.where(
            like(active, direction), like(length, direction) * direction, 0
        )
        residual = residual - like(length, product) * product
        following = _dot(residual, residual)
        direction = residual + like(following / squares, direction) * direction
        squares = torch.where(active, following, 0)
    return solution


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Inner product of each candidate, ``(R,)``."""
    return (one * other).flatten(1).sum(1)
