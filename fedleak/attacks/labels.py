"""Labels from the update of the final dense layer, before any image is known.

With cross entropy, the gradient of the loss in a sample's logits is its predicted
probabilities minus its one-hot label, and the final bias gradient is the mean of those
over the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.structure import final_dense, probe
from fedleak.errors import AttackFailed
from fedleak.gradients import mean_gradient
from fedleak.records import Observation, TrainingFacts

_PROBES = 64


def labels_unsupported(
    model: nn.Module, facts: TrainingFacts, input_shape: tuple[int, ...], classes: int
) -> str | None:
    """Say why labels cannot be recovered from updates of this model, or return None."""
    try:
        seen = probe(model, {}, facts.train_mode, _samples(2, input_shape))
    except (RuntimeError, ValueError) as error:
        return f"the model does not accept an input of shape {input_shape}: {error}"
    if final_dense(seen) is None:
        return "needs a dense layer whose output is the model's output; this model has none"
    if seen.output.shape[1] != classes:
        return f"needs one output per class; the model has {seen.output.shape[1]}, not {classes}"
    return None


def recover_labels(observation: Observation) -> Tensor:
    """The labels behind an update, ``(b,)`` int64 in ascending order.

    For one sample this is the rule of iDLG (Zhao et al. 2020, Eq. 4): the true class is
    the only one whose gradient is negative; exact, with or without a bias (without one
    it needs three classes or more). For a batch, class c occurs
    about ``b (p_c - g_c)`` times, where ``g`` is the bias gradient and ``p`` the mean
    predicted probabilities, taken from the model's outputs on random samples: an
    estimate, good while the model is untrained and predicts much the same for any input,
    and less good without a bias, where the features' size has to be estimated as well.

    Raises:
        AttackFailed: The model has no final dense layer.
    """
    tensors = {**observation.buffers, **observation.parameters}
    # One label is read off the update alone; the probe then only finds the layer.
    samples = _samples(2 if observation.samples == 1 else _PROBES, observation.input_shape)
    seen = probe(observation.model, tensors, observation.facts.train_mode, samples)
    name = final_dense(seen)
    if name is None:
        raise AttackFailed("labels need a dense layer whose output is the model's output")
    gradient = mean_gradient(observation.update, observation.parameters, observation.facts)
    rows = gradient[f"{name}.weight"].detach().double().cpu()
    if f"{name}.bias" in gradient:
        logits = gradient[f"{name}.bias"].detach().double().cpu()
    else:
        logits = _without_bias(rows, seen.inputs[name].mean(0), observation.samples)
    if observation.samples == 1:
        return logits.argmin()[None].to(observation.parameters[f"{name}.weight"].device)
    expected = functional.softmax(seen.output, 1).mean(0)
    counts = _apportion(observation.samples * (expected - logits), observation.samples)
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return labels.to(observation.parameters[f"{name}.weight"].device)


def _samples(count: int, input_shape: tuple[int, ...]) -> Tensor:
    """Random samples ``(n, *input)`` in [0, 1], float64, of brightness and contrast at random."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, *[1] * len(input_shape))
    noise = torch.rand(count, *input_shape, generator=generator, dtype=torch.float64)
    contrast = torch.rand(shape, generator=generator, dtype=torch.float64)
    brightness = torch.rand(shape, generator=generator, dtype=torch.float64)
    return contrast * noise + (1 - contrast) * brightness


def _without_bias(rows: Tensor, features: Tensor, samples: int) -> Tensor:
    """Estimate the gradient in the logits ``(K,)`` from weight gradients ``(K, features)``."""
    along: Tensor = rows @ features / features.square().sum()
    if samples > 1 or len(rows) < 3:
        return along
    # One sample makes the rows multiples of one vector, known up to its sign: the one
    # that leaves a single class negative.
    left, _, _ = torch.linalg.svd(rows, full_matrices=False)
    leading: Tensor = left[:, 0]
    return leading * leading.sign().sum().sign()


def _apportion(shares: Tensor, total: int) -> Tensor:
    """Whole counts ``(K,)`` that add up to ``total``, largest remainder first."""
    counts = torch.zeros(len(shares), dtype=torch.int64)
    for _ in range(total):
        counts[(shares - counts).argmax()] += 1
    return counts
