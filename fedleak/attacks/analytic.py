"""Exact inputs from the first dense layer that sees them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedleak.attacks.attack import Attack, Progress
from fedleak.attacks.embedding import behind_embedding, nearest_tokens
from fedleak.attacks.gradient_rows import GradientRows, gradient_rows
from fedleak.attacks.labels import labels_unsupported, recover_labels
from fedleak.attacks.replay import replay, replayable
from fedleak.attacks.structure import input_dense, seen_by
from fedleak.records import Observation, Reconstruction, Setting

_DIRECTIONS = 16
"""Random directions along which candidates are compared; they stand for all pixels."""

_REPLAYED = 1e-5
"""How far a replayed share may be from the observed one by arithmetic, of its range."""

_SMALL = 64
"""Samples in a small batch, and the candidates that are replayed of one at most."""

_BEST = 4
"""Candidates with most neurons that show whether the replay holds for an update."""

_SURE = 3
"""Neurons that must agree on a candidate before others are judged by it."""

_DOUBTFUL = 0.5
_UNKNOWN, _REFUTED = -1, -2


class Analytic(Attack):
    """Extraction of Boenisch et al., passive (§5) and active (§6, §7, App. B).

    A neuron's weight gradient is the sum of the samples that activate it, each times
    its share of the bias gradient (Eq. 6). Where a single sample activates the neuron,
    the ratio of the two is that sample exactly (Eq. 5). The layer is the one that sees
    every pixel by itself with the weights that were sent: the first dense layer, or one
    to which a malicious server lets the input pass. Nothing else is known of the server.

    With one sample every active neuron gives it; the least-squares solution over all of
    them, ``sum(h_i g_i) / sum(h_i^2)`` for weight gradients ``g_i`` and bias gradients
    ``h_i``, is returned. With more, a neuron's ratio is a candidate when it lies in
    [0, 1], and neurons that give the same one are solved together. Mixtures of samples
    lie in [0, 1] and agree, too. The model itself tells them apart: with each label a
    sample alone leaves a known bias gradient at its neuron, and what the client sent
    must be one of these. Candidates that pass this replay are the samples, with labels.

    The replay holds for cross entropy in one local step, without dropout and batch
    statistics, of an update that nobody clipped or blurred. Where it confirms nothing,
    a candidate on which two neurons agree counts, unless it lies between two others with
    more neurons behind them, and the ratio of a lone neuron is doubtful. Over several
    local steps a neuron's ratio is exact as long as one sample alone activates it in all
    of them.

    Of a text, the embedding of its tokens is extracted, in the range that embeddings
    have, and the token nearest to each vector is returned (§8).

    Rounding of what travelled is judged by each neuron's own error
    (`fedleak.attacks.gradient_rows`); neurons whose error exceeds ``tolerance`` are left
    out when b > 1.

    Confidence: how many neurons agree on the sample; 0.5 for a doubtful one.
    """

    kind: Literal["analytic"] = "analytic"
    tolerance: float = Field(
        0.01,
        gt=0,
        le=0.5,
        description="largest error of a neuron's ratio that still counts, in pixel values 0..1",
    )

    def unsupported(self, setting: Setting) -> str | None:
        model, input_shape = setting.model, setting.input_shape
        behind = behind_embedding(model, input_shape)
        if behind is not None:
            model, input_shape = behind.model, behind.input_shape
        try:
            layer = input_dense(model, {}, setting.facts.train_mode, input_shape)
        except (RuntimeError, ValueError) as error:
            return f"the model does not accept an input of shape {input_shape}: {error}"
        if layer is None:
            return (
                "needs a dense layer that sees the input unchanged or normalised by fixed "
                "factors; this model, with the weights that clients are sent, has none"
            )
        if model.get_submodule(layer.name).bias is None:
            return f"needs a bias in the dense layer that sees the input; {layer.name!r} has none"
        return None

    def reconstruct(
        self, observation: Observation, seed: int, progress: Progress | None = None
    ) -> Reconstruction:
        behind = behind_embedding(observation.model, observation.input_shape)
        if behind is None:
            found = self._extracted(observation, (0.0, 1.0))
        else:
            weight = observation.parameters[behind.weight]
            low, high = weight.aminmax()
            found = self._extracted(behind.observation(observation), (float(low), float(high)))
            found = replace(found, inputs=nearest_tokens(found.inputs, weight))
        if progress is not None:
            progress(1, 1, 0.0)
        return found

    def _extracted(self, observation: Observation, box: tuple[float, float]) -> Reconstruction:
        """What the gradient rows give, within the range of values that samples have."""
        rows = gradient_rows(observation)
        if observation.samples == 1:
            return _only_sample(rows, observation, box)
        return self._samples(rows, observation, box)

    def _samples(
        self, rows: GradientRows, observation: Observation, box: tuple[float, float]
    ) -> Reconstruction:
        """The samples of a batch that some neuron saw alone."""
        low, high = box
        ratios = rows.ratios()
        lowest, highest = ratios.aminmax(dim=1)
        # An error of the bias gradient scales the features, shift included.
        error = rows.error * (1 + torch.maximum(-lowest, highest))
        in_box = (lowest >= low - self.tolerance) & (highest <= high + self.tolerance)
        usable = in_box & (error <= self.tolerance)
        ratios, error, shares = ratios[usable], error[usable], rows.shares[usable]
        groups = _agreeing(ratios, error)
        support = groups.sum(1)
        # Least squares over the neurons of each candidate; every neuron is of one.
        weights = shares.square()
        group, neuron = groups.nonzero(as_tuple=True)
        whose = torch.empty_like(neuron)
        whose[neuron] = group
        found = ratios.new_zeros(len(groups), ratios.shape[1])
        found.index_add_(0, whose, ratios * weights[:, None])
        found /= weights.new_zeros(len(groups)).index_add_(0, whose, weights)[:, None]
        inputs = found.clamp(low, high).reshape(-1, *observation.input_shape)
        confidence = torch.where(support > 1, support.to(inputs), _DOUBTFUL)
        labels = torch.full_like(support, _UNKNOWN)
        if len(inputs) and replayable(observation):
            # A candidate's neuron is the most exact one of its group.
            chosen = torch.where(groups, error, torch.inf).argmin(1)
            claims = _Claims(
                inputs=inputs,
                neurons=rows.neurons[usable][chosen],
                shares=shares[chosen],
                share_error=rows.share_error[usable][chosen],
                error=error[chosen],
                support=support,
            )
            labels = claims.labels(observation, rows.layer.name)
        if (labels >= 0).any():
            kept = labels != _REFUTED
            confidence = torch.where(labels >= 0, support.to(inputs), confidence)
        else:
            # The replay confirms nothing: the client did not train as it takes for granted.
            kept = ~_blends(found, confidence, self.tolerance)
        return Reconstruction(
            inputs=inputs[kept],
            labels=labels[kept] if (labels[kept] >= 0).all() else None,
            confidence=confidence[kept],
        )


def extracted_rows(observation: Observation, samples: Tensor) -> tuple[Tensor, Tensor, int]:
    """Every active neuron's rescaled row, and samples as such a row shows them.

    Args:
        observation: The observation.
        samples: ``(b, *input)``.

    Returns:
        Rows ``(n, *shape)``, the samples ``(b, *shape)``, and the layer's neurons. The shape
        is that of an input; of texts, that of its tokens' embeddings.

    Raises:
        AttackFailed: See `fedleak.attacks.gradient_rows.gradient_rows`.
    """
    behind = behind_embedding(observation.model, observation.input_shape)
    if behind is not None:
        samples = observation.parameters[behind.weight][samples]
        observation = behind.observation(observation)
    rows = gradient_rows(observation)
    return rows.ratios().reshape(-1, *observation.input_shape), samples, rows.total


def agreed_values(observation: Observation) -> tuple[float, float] | None:
    """In which range samples lie that several neurons give alike, wherever attacks look.

    The medians of their lowest and of their highest values: of mixtures, a few agree by
    chance. None where neurons agree on nothing.

    Raises:
        AttackFailed: See `fedleak.attacks.gradient_rows.gradient_rows`.
    """
    rows = gradient_rows(observation)
    ratios = rows.ratios()
    groups = _agreeing(ratios, rows.error * (1 + ratios.abs().amax(1)))
    agreed = ratios[groups[groups.sum(1) >= _SURE].any(0)]
    if not len(agreed):
        return None
    lowest, highest = agreed.aminmax(dim=1)
    return float(lowest.median()), float(highest.median())


@dataclass(frozen=True)
class _Claims:
    """That a neuron saw a sample alone, for each candidate.

    Attributes:
        inputs: ``(m, *input)``, the candidates.
        neurons: ``(m,)``.
        shares: ``(m,)``, the neurons' bias gradients.
        share_error: ``(m,)``, how far rounding may have moved them.
        error: ``(m,)``, largest error of a candidate's pixels.
        support: ``(m,)``, neurons that give the same.
    """

    inputs: Tensor
    neurons: Tensor
    shares: Tensor
    share_error: Tensor
    error: Tensor
    support: Tensor

    def labels(self, observation: Observation, layer: str) -> Tensor:
        """The label with which each candidate passes the replay: ``(m,)`` int64.

        `_REFUTED` for those that do not pass, and for those whose neuron is switched on by
        another candidate on which more neurons, and at least `_SURE`, agree: the neuron saw
        that one, too. A replay costs what a backward pass of one sample does, so only as
        many as a quarter of the batch are made (`_SMALL` of a small one): the `_BEST`
        candidates, then the most uncertain ones. `_UNKNOWN` for the others.
        """
        labels = torch.full_like(self.neurons, _UNKNOWN)
        sure = self.support >= _SURE
        if sure.any():
            seen = _features(observation, layer, self.inputs[sure])
            weight, bias = (observation.parameters[f"{layer}.{x}"] for x in ("weight", "bias"))
            rows = weight[self.neurons]
            # Not what might be zero but for the errors of a candidate's pixels.
            least = self.error[sure, None] * seen.shape[1] ** 0.5 * rows.norm(dim=1)
            switched = seen @ rows.T + bias[self.neurons] > least
            switched &= self.support[sure, None] > self.support
            labels[switched.any(0)] = _REFUTED
        open = labels == _UNKNOWN
        doubt = self.support + self.error
        # The best ones go first: if not even they pass, the replay does not hold here.
        doubt[torch.where(open, self.support, 0).argsort(descending=True)[:_BEST]] = 0
        doubt[~open] = torch.inf
        batch = observation.samples
        most = _SMALL if batch <= _SMALL else batch // 4
        played = doubt.argsort()[: min(most, int(open.sum()))]
        if len(played):
            # A model that cannot be differentiated forward leaves them unknown.
            with contextlib.suppress(NotImplementedError):
                labels[played] = self._replayed(played, observation, layer)
        return labels

    def _replayed(self, which: Tensor, observation: Observation, layer: str) -> Tensor:
        alone = replay(observation, layer, self.inputs[which], self.neurons[which])
        missed, labels = (alone.shares - self.shares[which, None]).abs().min(1)
        # Where the candidate is not exact, neither is what the replay makes of it.
        allowed = alone.spread * (_REPLAYED + self.error[which]) + 2 * self.share_error[which]
        return torch.where(missed <= allowed, labels, _REFUTED)


def _features(observation: Observation, layer: str, inputs: Tensor) -> Tensor:
    """What the layer is given for such inputs with the weights that were sent."""
    tensors = {**observation.buffers, **observation.parameters}
    return seen_by(layer, observation.model, tensors, observation.facts.train_mode, inputs)


def _only_sample(
    rows: GradientRows, observation: Observation, box: tuple[float, float]
) -> Reconstruction:
    """The one sample, by least squares over all neurons; none if none is active."""
    weights, shares = rows.weights.double(), rows.shares.double()
    features = (shares @ weights / shares.square().sum())[None][: len(shares)]
    inputs = rows.layer.pixels(features).clamp(*box).reshape(-1, *observation.input_shape)
    setting = Setting(
        observation.model, observation.facts, observation.input_shape, observation.classes
    )
    labels = None
    if len(inputs) and not labels_unsupported(setting):
        labels = recover_labels(observation)
    confidence = torch.full((len(inputs),), float(len(shares))).to(rows.shares)
    return Reconstruction(inputs.to(rows.weights), labels, confidence)


def _agreeing(ratios: Tensor, error: Tensor) -> Tensor:
    """Groups of neurons that give the same sample.

    Args:
        ratios: ``(n, pixels)``.
        error: ``(n,)``, the largest error of a neuron's ratio.

    Returns:
        Groups ``(m, n)`` bool, disjoint; every neuron is in one.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(ratios.shape[1], _DIRECTIONS, generator=generator)
    shadows = ratios @ directions.to(ratios)
    # Root mean square differences. A random direction sees them as they are on average.
    apart = torch.cdist(shadows, shadows, compute_mode="donot_use_mm_for_euclid_dist")
    apart = apart / (_DIRECTIONS * max(1, ratios.shape[1])) ** 0.5
    agree = apart <= error + error[:, None]
    agree.fill_diagonal_(True)
    # The neuron most others agree with leads a group; of equals, the most exact one.
    by_error = error.argsort(stable=True)
    order = by_error[agree.sum(1)[by_error].argsort(descending=True, stable=True)]
    return _led(agree, order.argsort())


def _led(agree: Tensor, rank: Tensor) -> Tensor:
    """Groups that neurons lead which agree with no leader of a lower rank.

    Each pass makes leaders of all that have the lowest rank among those around them that are
    still free, so it takes a few passes and none over single neurons.

    Args:
        agree: ``(n, n)`` bool, symmetric, true on the diagonal.
        rank: ``(n,)`` int64, distinct.

    Returns:
        Groups ``(m, n)`` bool, by leader; a neuron is in that of its first one.
    """
    never = len(rank)
    if not never:
        return agree  # nobody, and no group
    free = torch.ones_like(rank, dtype=torch.bool)
    leads = torch.zeros_like(free)
    while free.any():
        first = torch.where(agree & free, rank, never).amin(1)
        leads |= free & (rank == first)
        free &= ~agree[:, leads].any(1)
    (leaders,) = leads.nonzero(as_tuple=True)
    first = torch.where(agree[:, leaders], rank[leaders], never).amin(1)
    return rank[leaders, None] == first


def _blends(found: Tensor, support: Tensor, tolerance: float) -> Tensor:
    """Which of the ``(m, pixels)`` found lie between two others with more support."""
    gram = found.double() @ found.double().T
    blend = torch.zeros_like(support, dtype=torch.bool)
    for i in range(len(found)):
        (better,) = ((support > support[i]) & ~blend).nonzero(as_tuple=True)
        # Inner products of the ways from the sample to the better ones.
        towards = gram[better, i]
        products = gram[better][:, better] - towards - towards[:, None] + gram[i, i]
        # Distance from every line through two better ones.
        squares = products.diagonal()
        apart = (squares[:, None] + squares - 2 * products).clamp(min=0)
        area = (squares[:, None] * squares - products.square()).clamp(min=0)
        # Between the two: seen from the sample, they lie in opposite directions.
        near = (area <= apart * tolerance**2 * found.shape[1]) & (products < 0)
        blend[i] = near.any()
    return blend
