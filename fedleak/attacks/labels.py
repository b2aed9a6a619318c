"""Labels from the update of the final dense layer, before any image is known.

With cross entropy, the gradient of the loss in a sample's logits is its predicted
probabilities minus its one-hot label, and the final bias gradient is the mean of those
over the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fedleak.attacks.label_order import order_labels
from fedleak.attacks.structure import final_dense, probe, samples_like
from fedleak.errors import AttackFailed
from fedleak.gradients import mean_gradient
from fedleak.records import Observation, Setting

_PROBES = 128

_SPREAD = 1e-3
"""Deviation of a mean probability that is always allowed for."""

_EXPLAINED = 1e-2
"""Part of the final layer's squared gradient that counts may leave unexplained to be sure."""

_ROUNDS = 6
"""Rounds in which features and predicted probabilities correct each other."""


def labels_unsupported(setting: Setting) -> str | None:
    """Say why labels cannot be recovered from updates of this model, or return None."""
    try:
        inputs = samples_like(2, setting.input_shape)
        seen = probe(setting.model, {}, setting.facts.train_mode, inputs)
    except (RuntimeError, ValueError) as error:
        return f"the model does not accept an input of shape {setting.input_shape}: {error}"
    if final_dense(seen) is None:
        return "needs a dense layer whose output is the model's output; this model has none"
    outputs = seen.output.shape[1]
    if outputs != setting.classes:
        return f"needs one output per class; the model has {outputs}, not {setting.classes}"
    return None


def recover_labels(observation: Observation) -> Tensor:
    """The labels behind an update, ``(b,)`` int64.

    In ascending order after one local step; after several, in that of the client's
    batches, as far as it is found (`fedleak.attacks.label_order`).

    For one sample this is the rule of iDLG (Zhao et al. 2020, Eq. 4): the true class is
    the only one whose gradient is negative; exact, with or without a bias (without one
    it needs three classes or more). For a batch, class c occurs ``b (p_c - g_c)`` times,
    where ``g`` is the bias gradient and ``p`` the batch's mean predicted probabilities.
    These are not known. Their mean and covariance over random samples are, from the
    model itself, and the first guess are those that imply the likeliest ``p``: good while
    the model is untrained and predicts much the same for any input, and less good
    without a bias, where the features' size has to be estimated as well. Where the
    weight gradient contradicts it (`_unexplained`), counts near by are tried, and taken
    if they explain it: they do where samples of one class have much the same features.

    Raises:
        AttackFailed: The model has no final dense layer.
    """
    tensors = {**observation.buffers, **observation.parameters}
    # One label is read off the update alone; the probe then only finds the layer.
    samples = samples_like(2 if observation.samples == 1 else _PROBES, observation.input_shape)
    seen = probe(observation.model, tensors, observation.facts.train_mode, samples)
    name = final_dense(seen)
    if name is None:
        raise AttackFailed("labels need a dense layer whose output is the model's output")
    gradient = mean_gradient(observation.update, observation.parameters, observation.facts)
    rows = gradient[f"{name}.weight"].detach().double().cpu()
    if f"{name}.bias" in gradient:
        logits = gradient[f"{name}.bias"].detach().double().cpu()
    else:
        # The size of the features is met best by those of the probes that are not smooth.
        logits = _without_bias(rows, seen.inputs[name][::2].mean(0), observation.samples)
    if observation.samples == 1:
        return logits.argmin()[None].to(observation.parameters[f"{name}.weight"].device)
    predicted = functional.softmax(seen.output, 1)
    if f"{name}.bias" in gradient:
        layer = observation.parameters[f"{name}.weight"], observation.parameters[f"{name}.bias"]
        weight, bias = (value.detach().double().cpu() for value in layer)

        def unexplained(counts: Tensor) -> Tensor:
            return torch.stack([_unexplained(each, rows, logits, weight, bias) for each in counts])

        counts = _likeliest(predicted, logits, observation.samples)
        if unexplained(counts[None]) > _EXPLAINED:
            near = _improved(counts, unexplained)
            counts = near if unexplained(near[None]) <= _EXPLAINED else counts
    else:
        # The gradient itself is uncertain here, more than the predictions are.
        shares = observation.samples * (predicted[::2].mean(0) - logits)
        counts = _apportion(shares, observation.samples)
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    labels = labels.to(observation.parameters[f"{name}.weight"].device)
    return labels if observation.facts.steps == 1 else order_labels(observation, labels, name)


def known_labels(observation: Observation) -> Tensor:
    """The labels that the threat model grants, ``(b,)`` int64.

    Raises:
        AttackFailed: It grants none, or not one for each sample.
    """
    labels = observation.labels
    if labels is None:
        raise AttackFailed(
            "known labels are asked for and the observation has none: "
            'let them be recovered (labels = "recovered")'
        )
    if labels.shape != (observation.samples,):
        raise AttackFailed(
            f"the observation has {labels.numel()} known labels for {observation.samples} samples"
        )
    return labels


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


def _likeliest(predicted: Tensor, gradient: Tensor, total: int) -> Tensor:
    """Whole counts ``(K,)`` that add up to ``total``.

    With counts n the batch's mean prediction is ``gradient + n / total``. It is taken for
    normal, with the mean and covariance of predictions on probes; no entry is negative.

    Args:
        predicted: Probabilities ``(n, K)`` of the probes.
        gradient: ``(K,)``, of the loss in the final bias.
        total: Samples in the batch.
    """
    mean = predicted.mean(0)
    spread = predicted.T.cov() + _SPREAD**2 * torch.eye(len(mean)).to(mean)
    precision = torch.linalg.inv(spread / total)

    def unlikely(counts: Tensor) -> Tensor:
        """For ``(m, K)`` counts: minus twice the log likelihood, plus a wall at zero."""
        implied = gradient + counts / total
        apart = implied - mean
        negative = (-implied - _SPREAD).clamp(min=0).sum(1)
        squares: Tensor = ((apart @ precision) * apart).sum(1)
        return squares + negative / _SPREAD**2

    return _improved(_apportion(total * (mean - gradient), total), unlikely)


def _improved(counts: Tensor, cost: Callable[[Tensor], Tensor]) -> Tensor:
    """Move one sample at a time from one class to another while that costs less.

    Args:
        counts: ``(K,)`` to begin with.
        cost: Of ``(m, K)`` counts, ``(m,)``.
    """
    one = torch.eye(len(counts), dtype=torch.int64)
    moves = (one[:, None] - one).flatten(0, 1)
    moves = moves[moves.any(1)]
    least = cost(counts[None])[0]
    while True:
        others = counts + moves
        others = others[(others >= 0).all(1)]
        value, best = cost(others).min(0)
        # What is as good but for rounding is no reason to go on.
        if not value < least * (1 - 1e-9):
            return counts
        counts, least = others[best], value


def _unexplained(
    counts: Tensor, rows: Tensor, gradient: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Part of the final layer's squared gradients that whole counts cannot account for.

    If the ``n_k`` samples of class k share their features ``r_k``, and so their predicted
    probabilities ``p_k``, the weight gradient is ``sum_k (n_k / b) (p_k - e_k) r_k'`` and
    the bias gradient the same without features. Features follow from probabilities by
    least squares and those from the features, in turns, from the mean prediction on.

    Args:
        counts: ``(K,)``.
        rows: Weight gradient ``(K, features)``.
        gradient: Bias gradient ``(K,)``.
        weight: ``(K, features)``.
        bias: ``(K,)``.
    """
    present = counts.nonzero()[:, 0]
    shares = counts.double() / counts.sum()
    mean = (gradient + shares).clamp(min=0)
    probabilities = (mean / mean.sum()).expand(len(present), -1)
    for _ in range(_ROUNDS):
        slopes = _slopes(present, shares, probabilities)
        features = torch.linalg.lstsq(slopes, rows, driver="gelsd").solution
        probabilities = functional.softmax(features @ weight.T + bias, 1)
    slopes = _slopes(present, shares, probabilities)
    features = torch.linalg.lstsq(slopes, rows, driver="gelsd").solution
    off: Tensor = (rows - slopes @ features).square().sum() / rows.square().sum()
    missing: Tensor = (gradient - slopes.sum(1)).square().sum() / gradient.square().sum()
    return off + missing


def _slopes(present: Tensor, shares: Tensor, probabilities: Tensor) -> Tensor:
    """Each present class' part of the mean gradient in the logits, ``(K, present)``."""
    one_hot = functional.one_hot(present, len(shares)).to(probabilities)
    parts: Tensor = shares[present, None] * (probabilities - one_hot)
    return parts.T


def _apportion(shares: Tensor, total: int) -> Tensor:
    """Whole counts ``(K,)`` that add up to ``total``, largest remainder first."""
    counts = torch.zeros(len(shares), dtype=torch.int64)
    for _ in range(total):
        counts[(shares - counts).argmax()] += 1
    return counts
