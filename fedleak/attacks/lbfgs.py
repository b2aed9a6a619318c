"""L-BFGS for many independent problems at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SUFFICIENT_DECREASE = 1e-4
_CURVATURE = 0.9
_TRIALS = 20


def minimise(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    evaluations: int,
    *,
    history: int = 20,
    report: Callable[[int, Tensor, Tensor], bool] | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimise ``R`` functions, each from its own start and with its own line search.

    Limited-memory BFGS (Nocedal & Wright, Alg. 7.4) with the bisection line search for
    the weak Wolfe conditions (Lewis & Overton 2013, Alg. 2.6). One evaluation serves
    all problems: each is at its own trial step of its own search, so none waits for
    another, and nothing waits for the device. A value or gradient that is not finite
    counts as a step too far. A problem whose search fails starts again along its
    steepest descent, which stands still at a minimum.

    Args:
        function: Takes points ``(R, n)``, returns values ``(R,)`` and gradients ``(R, n)``.
        start: ``(R, n)``.
        evaluations: How often ``function`` is called, >= 1.
        history: Steps each problem remembers, >= 1.
        report: Called after every evaluation with its number from 1, the points
            accepted so far and their values; says whether to go on.

    Returns:
        The points ``(R, n)`` with the least value accepted, and the values ``(R,)``;
        infinite where the start had no finite value.
    """
    point = start
    value, gradient = function(point)
    finite = value.isfinite() & gradient.isfinite().all(1)
    value = torch.where(finite, value, torch.inf)
    gradient = torch.where(finite[:, None], gradient, 0)
    if report is not None and not report(1, point, value):
        return point, value
    count, size = point.shape
    steps = point.new_zeros(history, count, size)
    changes = point.new_zeros(history, count, size)
    curvatures = point.new_zeros(history, count)

    direction = -gradient
    step = low = point.new_zeros(count)
    high = torch.full_like(low, torch.inf)
    step = _first_step(gradient)
    trials = torch.zeros(count, dtype=torch.int64, device=point.device)
    for evaluation in range(2, evaluations + 1):
        trial = point + step[:, None] * direction
        trial_value, trial_gradient = function(trial)
        slope = (gradient * direction).sum(1)
        enough = trial_value <= value + _SUFFICIENT_DECREASE * step * slope
        enough &= trial_value.isfinite() & trial_gradient.isfinite().all(1)
        steep = (trial_gradient * direction).sum(1) < _CURVATURE * slope
        accepted = enough & ~steep & (slope < 0)
        trials = trials + 1
        failed = ~accepted & (trials >= _TRIALS)

        # Remember the accepted steps, newest first; a failed search forgets all of its own.
        moved, changed = trial - point, trial_gradient - gradient
        curvature = (moved * changed).sum(1)
        taken = accepted[:, None]
        steps = _pushed(steps, moved, taken, failed)
        changes = _pushed(changes, changed, taken, failed)
        curvatures = _pushed(curvatures[..., None], curvature[:, None], taken, failed)[..., 0]

        point = torch.where(taken, trial, point)
        value = torch.where(accepted, trial_value, value)
        gradient = torch.where(taken, trial_gradient, gradient)

        renewed = accepted | failed
        high = torch.where(enough, high, step)
        low = torch.where(enough & steep, step, low)
        inside = torch.where(high.isfinite(), (low + high) / 2, 2 * step)
        step = torch.where(accepted, 1.0, torch.where(failed, _first_step(gradient), inside))
        low = torch.where(renewed, 0.0, low)
        high = torch.where(renewed, torch.inf, high)
        trials = torch.where(renewed, 0, trials)
        direction = torch.where(
            renewed[:, None], -_times_inverse(gradient, steps, changes, curvatures), direction
        )
        if report is not None and not report(evaluation, point, value):
            break
    return point, value


def _first_step(gradient: Tensor) -> Tensor:
    """A step along steepest descent that changes the coordinates by one in all."""
    return 1 / gradient.abs().sum(1).clamp(min=torch.finfo(gradient.dtype).tiny)


def _pushed(memory: Tensor, newest: Tensor, taken: Tensor, failed: Tensor) -> Tensor:
    longer = torch.cat([newest[None], memory[:-1]])
    return torch.where(failed[:, None], 0, torch.where(taken, longer, memory))


def _times_inverse(gradient: Tensor, steps: Tensor, changes: Tensor, curvatures: Tensor) -> Tensor:
    """The two-loop recursion; an empty place in the memory leaves the vector as it is."""
    used = curvatures > 0
    inverse = torch.where(used, 1 / torch.where(used, curvatures, 1), 0)
    vector = gradient
    shares = []
    for move, change, weight in zip(steps, changes, inverse, strict=True):
        share = weight * (move * vector).sum(1)
        vector = vector - share[:, None] * change
        shares.append(share)
    squares = changes[0].square().sum(1)
    scale = torch.where(used[0], curvatures[0] / torch.where(used[0], squares, 1), 1)
    vector = scale[:, None] * vector
    for place in reversed(range(len(steps))):
        back = inverse[place] * (changes[place] * vector).sum(1)
        vector = vector + (shares[place] - back)[:, None] * steps[place]
    return vector
