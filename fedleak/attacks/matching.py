"""Samples, and where asked their labels, by L-BFGS on the squared distance of updates."""

from __future__ import annotations

import torch
from torch import Tensor

from fedleak.attacks.lbfgs import minimise
from fedleak.attacks.optimisation import Best, Prior, Search, Watch
from fedleak.attacks.waves import Waves
from fedleak.gradients import squared_distance


def match(
    search: Search, evaluations: int, box: bool, watch: Watch, prior: Prior | None = None
) -> Best:
    """Minimise the relative squared distance, each candidate by a line search of its own.

    Args:
        search: Where its labels are logits ``(R, b, K)``, they are optimised as well, and the
            best labels are probabilities.
        evaluations: Evaluations of the update map per candidate.
        box: Whether pixels are kept in [0, 1], as the squared sines of free variables.
        watch: Asked after every evaluation.
        prior: See `Search.evaluate`.
    """
    shape = search.start.shape
    waves = Waves(search.start)
    size = search.start[0].numel()
    joint = search.labels.is_floating_point()

    def read(points: Tensor) -> tuple[Tensor, Tensor]:
        inputs = waves.pixels(points[:, :size].reshape(shape))
        labels = search.labels
        if joint:
            labels = points[:, size:].reshape(labels.shape).softmax(-1)
        return inputs.sin().square() if box else inputs, labels

    def function(points: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            variable = points.detach().requires_grad_()
            inputs, labels = read(variable)
        values, of_inputs, of_labels = search.evaluate(inputs, labels, squared_distance, prior)
        outputs, slopes = [inputs], [of_inputs]
        if of_labels is not None:
            outputs.append(labels)
            slopes.append(of_labels)
        (gradient,) = torch.autograd.grad(outputs, variable, slopes)
        return values, gradient

    best = search.best(search.start)

    def accepted(evaluation: int, points: Tensor, values: Tensor) -> bool:
        inputs, labels = read(points)
        best.update(inputs, values, labels)
        return watch(evaluation, best)

    start = search.start.clamp(0, 1).sqrt().asin() if box else search.start
    start = waves.variables(start).flatten(1)
    if joint:
        start = torch.cat([start, search.labels.flatten(1)], 1)
    minimise(function, start, evaluations, report=accepted)
    return best
