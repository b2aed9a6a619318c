"""Exact inputs from the first dense layer of an unmodified network."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedleak.attacks.attack import Attack, Progress, refuse_unusable
from fedleak.attacks.labels import labels_unsupported, recover_labels
from fedleak.attacks.structure import input_dense
from fedleak.gradients import gradient_weight, mean_gradient
from fedleak.records import Observation, Reconstruction, TrainingFacts


class Analytic(Attack):
    """Passive extraction of Boenisch et al., §5, for any batch size.

    A neuron's weight gradient is the sum of the samples that activate it, each times
    its share of the bias gradient (Eq. 6). Where a single sample activates the neuron,
    the ratio of the two is that sample exactly (Eq. 5).

    With one sample every active neuron gives it; the least-squares solution over all
    of them, ``sum(h_i g_i) / sum(h_i^2)`` for weight gradients ``g_i`` and bias
    gradients ``h_i``, is returned. With more, a neuron's ratio is taken for a sample
    when it lies in [0, 1] and another neuron gives the same one: two mixtures agree
    only by chance, two neurons with one and the same sample always do. A sample's
    neurons are then solved together, and what remains a blend of two samples with more
    neurons behind them is dropped. A sample that no two neurons see alone is not found.

    Parameters travel as float32, so an update has an error of about ``2^-24 |w| / lr``
    and a ratio of about that over ``|h_i|``; agreement is judged by each neuron's own
    error, and neurons whose error exceeds ``tolerance`` are left out when b > 1. Over
    several local steps a neuron's ratio is exact as long as one sample alone activates
    it in all of them.

    Confidence: how many neurons agree on the sample.
    """

    kind: Literal["analytic"] = "analytic"
    tolerance: float = Field(
        0.01,
        gt=0,
        le=0.5,
        description="largest error of a neuron's ratio that still counts, in pixel values 0..1",
    )

    def unsupported(
        self, model: nn.Module, facts: TrainingFacts, input_shape: tuple[int, ...], classes: int
    ) -> str | None:
        try:
            layer = input_dense(model, {}, facts.train_mode, input_shape)
        except (RuntimeError, ValueError) as error:
            return f"the model does not accept an input of shape {input_shape}: {error}"
        if layer is None:
            return (
                "needs a dense layer that sees the input unchanged or normalised by fixed "
                "factors; this model has none"
            )
        if model.get_submodule(layer.name).bias is None:
            return f"needs a bias in the dense layer that sees the input; {layer.name!r} has none"
        return None

    def reconstruct(
        self, observation: Observation, seed: int, progress: Progress | None = None
    ) -> Reconstruction:
        refuse_unusable(observation)
        facts, parameters = observation.facts, observation.parameters
        tensors = {**observation.buffers, **parameters}
        layer = input_dense(observation.model, tensors, facts.train_mode, observation.input_shape)
        assert layer is not None, "unsupported() says so before"
        weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
        gradient = mean_gradient(observation.update, parameters, facts)
        rows = gradient[weight].detach().double().cpu()
        shares = gradient[bias].detach().double().cpu()
        active = shares != 0
        rows, shares = rows[active], shares[active]

        largest = torch.maximum(
            parameters[weight].detach().double().cpu()[active].abs().amax(1),
            parameters[bias].detach().double().cpu()[active].abs(),
        )
        rounding = torch.finfo(torch.float32).eps / 2
        travelled = rounding * largest / (facts.lr * gradient_weight(facts))
        # Arithmetic on the client rounds as well, relative to the gradient itself.
        error = travelled / shares.abs() + 32 * rounding

        ratios = layer.pixels(rows / shares[:, None], observation.input_shape).flatten(1)
        # An error of the bias gradient scales the features, shift included.
        error = error * (1 + ratios.abs().amax(1)) / layer.scale.abs().min()
        if observation.samples == 1:
            groups = _together(shares)
        else:
            in_box = (ratios.amin(1) >= -self.tolerance) & (ratios.amax(1) <= 1 + self.tolerance)
            usable = in_box & (error <= self.tolerance)
            rows, shares, error = rows[usable], shares[usable], error[usable]
            groups = _agreeing(ratios[usable], error)
        # Least squares over the neurons of each sample.
        members = groups.double() * shares
        features = (members @ rows) / (members @ shares)[:, None]
        found = layer.pixels(features, observation.input_shape)
        confidence = groups.sum(1)
        if observation.samples > 1:
            kept = ~_blends(found.flatten(1), confidence, self.tolerance)
            found, confidence = found[kept], confidence[kept]
        like = next(iter(parameters.values()))
        labels = None
        if observation.samples == 1 and len(found) == 1:
            told = (observation.model, facts, observation.input_shape, observation.classes)
            labels = None if labels_unsupported(*told) else recover_labels(observation)
        if progress is not None:
            progress(1, 1, 0.0)
        return Reconstruction(
            inputs=found.clamp(0, 1).to(like), labels=labels, confidence=confidence.to(like)
        )


def _together(shares: Tensor) -> Tensor:
    """All neurons as one group ``(1, n)``; no group ``(0, n)`` if there is no neuron."""
    return torch.ones(min(1, len(shares)), len(shares), dtype=torch.bool)


def _agreeing(ratios: Tensor, error: Tensor) -> Tensor:
    """Groups of neurons that give the same sample.

    Args:
        ratios: ``(n, pixels)``.
        error: ``(n,)``, the largest error of a neuron's ratio.

    Returns:
        Groups ``(m, n)`` bool, disjoint, each of two neurons or more.
    """
    # Root mean square differences; float64 leaves enough digits for inner products.
    apart = torch.cdist(ratios, ratios, compute_mode="use_mm_for_euclid_dist")
    agree = apart / max(1, ratios.shape[1]) ** 0.5 <= error + error[:, None]
    agree.fill_diagonal_(True)
    # The neuron most others agree with leads a group; of equals, the most exact one.
    by_error = error.argsort(stable=True)
    order = by_error[agree.sum(1)[by_error].argsort(descending=True, stable=True)]
    free = torch.ones(len(error), dtype=torch.bool)
    groups = []
    for leader in order.tolist():
        group = agree[leader] & free
        if free[leader] and group.sum() >= 2:
            groups.append(group)
            free &= ~group
    return torch.stack(groups) if groups else torch.zeros(0, len(error), dtype=torch.bool)


def _blends(found: Tensor, support: Tensor, tolerance: float) -> Tensor:
    """Which of the ``(m, pixels)`` found lie between two others with more support."""
    blend = torch.zeros(len(found), dtype=torch.bool)
    for i, sample in enumerate(found):
        better = found[(support > support[i]) & ~blend]
        if len(better) < 2:
            continue
        # Distance from every line through two better ones, from inner products alone.
        away = better - sample
        products = away @ away.T
        squares = products.diagonal()
        apart = (squares[:, None] + squares - 2 * products).clamp(min=0)
        area = (squares[:, None] * squares - products.square()).clamp(min=0)
        # Between the two: seen from the sample, they lie in opposite directions.
        near = (area <= apart * tolerance**2 * found.shape[1]) & (products < 0)
        blend[i] = bool(near.any())
    return blend
