"""Which labels were in which local step, by rehearsing the client's training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedleak.attacks.structure import samples_like
from fedleak.gradients import UpdateMap, batches, squared_distance
from fedleak.records import Observation

_STARTS = 4
"""Orders from which the search begins."""

_MOST = 4096
"""Rehearsals of one observation at most; they cost less than a short attack."""

_TOGETHER = 256
"""Rehearsals at a time, to bound memory."""


def order_labels(observation: Observation, labels: Tensor, layer: str) -> Tensor:
    """Labels in the order of the client's batches, corrected where they are uncertain.

    What an untrained network's final layer makes of local training hangs on the labels and
    their order far more than on the samples. So training is rehearsed with dummy samples,
    and the labels are those whose update of that layer comes closest to the observed one:
    from several orders, each label in turn is changed for the best, and pairs are
    exchanged, until nothing gains. Where even one round of that takes more than 4096
    rehearsals, the labels are returned as they are.

    Args:
        observation: Of several local steps.
        labels: ``(b,)`` int64, a first guess.
        layer: Name of the final dense layer.

    Returns:
        ``(b,)``, ascending within those samples that are always in a step together.
    """
    size, classes = len(labels), observation.classes
    parts = (f"{layer}.weight", f"{layer}.bias")
    known = dict(observation.model.named_parameters())
    names = [name for name in parts if name in known and known[name].requires_grad]
    round_costs = _STARTS * (size * (size - 1) // 2 + size * classes)
    if not names or round_costs > _MOST:
        return labels
    mapping = UpdateMap(
        observation.model,
        observation.parameters,
        observation.buffers,
        observation.facts,
        layers=names,
    )
    # Of each two samples the second is smooth, as images are.
    samples = samples_like(2 * size, observation.input_shape)[1::2]
    samples = samples.to(observation.parameters[names[0]])
    targets = [{name: observation.update[name][None]} for name in names]

    def apart(tried: Tensor) -> Tensor:
        """Of ``(m, b)`` labels, ``(m,)``. Bias and weight count alike."""
        distances = []
        for part in torch.split(tried, _TOGETHER):
            update = mapping(samples.expand(len(part), *samples.shape), part)
            each = [squared_distance(update, target) for target in targets]
            distances.append(torch.stack(each).sum(0))
        return torch.cat(distances)

    pairs = torch.combinations(torch.arange(size)).tolist()
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.rand(_STARTS, size, generator=generator).argsort(1)
    shuffled[0] = torch.arange(size)
    found = labels[shuffled.to(labels.device)]
    with torch.no_grad():
        least = apart(found)
        for _ in range(_MOST // round_costs):
            before = least
            for place in range(size):
                found, least = _best(found, least, _changed(found, place, classes), apart)
            found, least = _best(found, least, _exchanged(found, pairs), apart)
            if not (least < before).any():
                break
    return _sorted_within_steps(found[least.argmin()], observation)


def _best(
    found: Tensor, least: Tensor, tried: Tensor, apart: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Of each start ``(s, b)`` the best it has tried ``(s, m, b)``, where that gains."""
    values, chosen = apart(tried.flatten(0, 1)).reshape(len(found), -1).min(1)
    # What is as good but for rounding is no gain.
    better = values < least * (1 - 1e-4)
    best = tried[torch.arange(len(found), device=chosen.device), chosen]
    return torch.where(better[:, None], best, found), torch.where(better, values, least)


def _changed(found: Tensor, place: int, classes: int) -> Tensor:
    """One label in every other way: ``(s, classes, b)``."""
    tried = found[:, None].repeat(1, classes, 1)
    tried[:, :, place] = torch.arange(classes, device=found.device)
    return tried


def _exchanged(found: Tensor, pairs: list[list[int]]) -> Tensor:
    """Two labels exchanged, each pair of them: ``(s, pairs, b)``."""
    order = torch.arange(found.shape[1]).repeat(len(pairs), 1)
    for row, (one, other) in enumerate(pairs):
        order[row, one], order[row, other] = other, one
    return found[:, order.to(found.device)]


def _sorted_within_steps(labels: Tensor, observation: Observation) -> Tensor:
    """The order within a step means nothing."""
    result = labels.clone()
    for batch in batches(observation.facts):
        result[batch] = labels[batch].sort().values
    return result
