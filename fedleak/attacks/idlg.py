"""Improved Deep Leakage from Gradients (Zhao, Mopuri, Bilen 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch import Tensor

from fedleak.attacks.lbfgs import minimise
from fedleak.attacks.optimisation import Best, OptimisationAttack, Search, squared_distance


class IDLG(OptimisationAttack):
    """The label first, exactly; then the sample, by L-BFGS on the squared distance.

    Zhao et al. 2020, Alg. 1; batches take their labels from counts. The distance is
    relative to the observed update's norm, and each restart has a line search of its
    own. Nothing keeps pixels in [0, 1] on the way, only the outcome is clamped.
    """

    kind: Literal["idlg"] = "idlg"
    iterations: int = Field(
        300, ge=1, le=1_000_000, description="evaluations of the update map per restart"
    )

    def _optimise(self, search: Search, report: Callable[[int, Best], None]) -> Best:
        shape = search.start.shape
        best = Best(search.start)

        def function(points: Tensor) -> tuple[Tensor, Tensor]:
            values, gradients = search.evaluate(points.reshape(shape), squared_distance)
            return values, gradients.flatten(1)

        def accepted(evaluation: int, points: Tensor, values: Tensor) -> None:
            best.update(points.reshape(shape), values)
            report(evaluation, best)

        minimise(function, search.start.flatten(1), self.iterations, report=accepted)
        return best
