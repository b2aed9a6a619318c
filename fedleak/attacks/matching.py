"""Samples, and where asked their labels, by L-BFGS on the squared distance of updates."""

from __future__ import annotations

import torch
from torch import Tensor

from fedleak.attacks.lbfgs import minimise
from fedleak.attacks.optimisation import Best, Search, Watch, total_variation
from fedleak.gradients import squared_distance


def match(search: Search, evaluations: int, box: bool, tv: float, watch: Watch) -> Best:
    """Minimise the relative squared distance, each candidate by a line search of its own.

    Args:
        search: Where its labels are logits ``(R, b, K)``, they are optimised as well, and the
            best labels are probabilities.
        evaluations: Evaluations of the update map per candidate.
        box: Whether pixels are kept in [0, 1], as the squared sines of free variables.
        tv: Weight of the total variation, for inputs of two dimensions or more.
        watch: Asked after every evaluation.
    """
    shape = search.start.shape
    size = search.start[0].numel()
    joint = search.labels.is_floating_point()
    smoothed = tv > 0 and search.start.dim() >= 4

    def penalty(inputs: Tensor) -> Tensor:
        return tv * total_variation(inputs)

    def read(points: Tensor) -> tuple[Tensor, Tensor]:
        inputs = points[:, :size].reshape(shape)
        labels = search.labels
        if joint:
            labels = points[:, size:].reshape(labels.shape).softmax(-1)
        return inputs.sin().square() if box else inputs, labels

    def function(points: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            variable = points.detach().requires_grad_()
            inputs, labels = read(variable)
        values, of_inputs, of_labels = search.evaluate(
            inputs, labels, squared_distance, penalty if smoothed else None
        )
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
    start = start.flatten(1)
    if joint:
        start = torch.cat([start, search.labels.flatten(1)], 1)
    minimise(function, start, evaluations, report=accepted)
    return best
