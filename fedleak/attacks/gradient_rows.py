"""What the dense layer that sees the input left in an update, neuron by neuron."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedleak.attacks.attack import refuse_unusable
from fedleak.attacks.structure import InputLayer, input_dense
from fedleak.errors import AttackFailed
from fedleak.gradients import gradient_weight, mean_gradient
from fedleak.records import Observation

ROUNDING = torch.finfo(torch.float32).eps / 2


@dataclass(frozen=True)
class GradientRows:
    """The gradient of the loss in one dense layer, in the rows of its active neurons.

    A neuron's weight gradient is the sum of the samples that activate it, each times its
    share of the bias gradient (Boenisch et al., Eq. 6).

    Attributes:
        layer: The dense layer, and where in it the pixels are.
        total: Neurons of the layer, ``N``.
        neurons: ``(n,)`` int64, those whose bias gradient is not zero: the active ones.
        weights: ``(n, pixels)``, their weight gradients where the pixels are.
        shares: ``(n,)``, their bias gradients.
        error: ``(n,)``, largest error of `ratios` by rounding, relative to one plus
            the ratio's largest value.
        share_error: ``(n,)``, the same of ``shares``, absolute.
    """

    layer: InputLayer
    total: int
    neurons: Tensor
    weights: Tensor
    shares: Tensor
    error: Tensor
    share_error: Tensor

    def ratios(self) -> Tensor:
        """Rescaled rows (Eq. 5), ``(n, pixels)``: samples, or mixtures of them."""
        return self.layer.pixels(self.weights / self.shares[:, None])


def gradient_rows(observation: Observation) -> GradientRows:
    """Find the dense layer that sees the input in the weights sent, and its gradient.

    Parameters travel as float32, so an update has an error of about ``2^-24 |w| / lr``.

    Raises:
        AttackFailed: With these weights no dense layer sees the input, or its update is
            unusable.
    """
    facts, parameters = observation.facts, observation.parameters
    layer = input_dense(
        observation.model,
        {**observation.buffers, **parameters},
        facts.train_mode,
        observation.input_shape,
    )
    if layer is None:
        raise AttackFailed("no dense layer sees the input with the weights that were sent")
    weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
    sent = {name: parameters[name].detach() for name in (weight, bias)}
    update = {name: observation.update[name] for name in sent if name in observation.update}
    # Nothing else is used, and looking at all of a large model takes its time.
    refuse_unusable(replace(observation, parameters=sent, update=update))
    gradient = mean_gradient(update, sent, facts)
    rounded = ROUNDING / (facts.lr * gradient_weight(facts))
    # Weight decay moves every bias, and what is left after taking it out is rounded.
    least = 4 * rounded * sent[bias].abs() if facts.weight_decay else 0.0
    (neurons,) = (gradient[bias].abs() > least).nonzero(as_tuple=True)
    weights = gradient[weight][neurons]
    carrier = layer.carrier.to(weights.device)
    if not torch.equal(carrier, torch.arange(weights.shape[1], device=carrier.device)):
        weights = weights[:, carrier]
    shares = gradient[bias][neurons]
    largest_weight = sent[weight].abs().amax(1)[neurons]
    largest_bias = sent[bias].abs()[neurons]
    travelled = rounded * torch.maximum(largest_weight, largest_bias)
    # Arithmetic on the client rounds as well, relative to the gradient itself.
    error = (travelled / shares.abs() + 32 * ROUNDING) / layer.scale.abs().min().to(shares)
    return GradientRows(
        layer=layer,
        total=len(sent[bias]),
        neurons=neurons,
        weights=weights,
        shares=shares,
        error=error,
        share_error=rounded * largest_bias + 32 * ROUNDING * shares.abs(),
    )
