"""A look at the weights that came in: have they the marks of a trap?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord
from pydantic import Field
from torch import Tensor, nn

from clients.defenses.defense import Defense, Metrics, Turn
from fedleak.errors import RoundRefused
from fedleak.records import Setting

CHANCE = 0.001
"""Probability with which a fresh layer, by chance, shows anything of a mark."""

_SAMPLE = 10_000  # weights of a layer that distributions are compared by
_SAME = 1e-5  # entries of unit rows that differ by less are the same, up to rounding

Values = npt.NDArray[np.float32]


class WeightInspection(Defense):
    """Scores how far the weights that came in look like a trap (Boenisch et al., §10.1).

    In each dense layer and convolution it measures five marks of manipulation, each
    from 0 to 1; a row is what one neuron or filter weighs its inputs with.

    - ``balance``: how much less the numbers of negative weights per row vary than tosses
      of a fair coin would. Trap rows have exactly as many of one sign as of the other.
    - ``negative``: by how much more than half of the rows have a negative sum, as a
      share of all that could. Trap rows weigh negatively more than positively.
    - ``one-hot``: share of the layer's inputs that rows with a single weight hand on,
      where there are more such rows than zeros placed at random would leave.
    - ``duplicates``: share of rows that are a positive multiple of another one.
    - ``fresh`` and ``last``: Kolmogorov-Smirnov distance of the weights to those that
      the initialisation gives, and to those that came in the round before (0 in the
      client's first one). It is at most the share of weights that were replaced, and at
      most 1/2 between two distributions that are both symmetric about zero.

    Chance is taken off each: what is reported is a bound that the mark of a layer with
    fresh, independent, symmetric weights exceeds zero with probability at most 0.001
    (for ``duplicates``: never). The score is the largest mark of any layer. The largest,
    because an attacker needs only one, and the absence of the others excuses nothing; and no
    weights by which marks are added, because they could only be fitted to known attacks.

    What it cannot see. Unmodified weights leak too (§5), and a pair of models
    never tells whether honest training led from one to the other: no inspection detects
    every attack. An attacker who knows this one draws the signs of rows independently,
    fills up kernels with small weights and matches the spread of the initialisation. On the
    other side pruning leaves rows with a single weight, and training and pruning move
    distributions: ``fresh`` and ``last`` are large for honest models too.
    """

    kind: Literal["weight-inspection"] = "weight-inspection"
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="score above which the client takes no part in the round; default it "
        "only reports",
    )

    def unsupported(self, setting: Setting) -> str | None:
        if _layers(setting.model):
            return None
        return "it inspects dense layers and convolutions; this model has none"

    def receive(self, model: nn.Module, turn: Turn) -> Metrics:
        rng = turn.rng
        layers = _layers(model)
        if not all(bool(_weight(layer).isfinite().all()) for layer in layers.values()):
            raise RoundRefused("the weights that came in are not finite")
        came = {name: _sample(layer, rng) for name, layer in layers.items()}
        fresh = {name: _sample(layer, rng) for name, layer in _layers(turn.fresh(turn.key)).items()}
        last = _remembered(turn)
        marks = {
            name: {**row_marks(layer, rng)}
            | {"fresh": distance(came[name], fresh[name])}
            | {"last": distance(came[name], last[name]) if last else 0.0}
            for name, layer in layers.items()
        }
        largest = {
            mark: max(of_layer[mark] for of_layer in marks.values())
            for mark in next(iter(marks.values()))
        }
        score = max(largest.values())
        if self.threshold is not None and score > self.threshold:
            mark = max(largest, key=lambda mark: largest[mark])
            layer = max(marks, key=lambda name: marks[name][mark])
            raise RoundRefused(
                f"weight-inspection scores {score:.3f}, above its threshold {self.threshold:g}: "
                f"{mark} of layer {layer!r}"
            )
        turn.state[turn.label] = ArrayRecord({name: Array(a) for name, a in came.items()})
        return {"score": score, **largest}


def row_marks(layer: nn.Module, rng: np.random.Generator) -> dict[str, float]:
    """What the rows of one layer show by themselves; see `WeightInspection`."""
    weight = _weight(layer)
    rows = weight.flatten(1)
    return {
        "balance": balance(rows),
        "negative": negative(rows),
        "one-hot": one_hot(weight, int(getattr(layer, "groups", 1))),
        "duplicates": duplicates(rows, rng),
    }


def balance(rows: Tensor) -> float:
    """How much less evenly a fair coin would have spread signs over rows, from 0 to 1.

    One minus an upper confidence bound of the dispersion: Pearson's statistic of the
    numbers of negative weights over its least likely value under fair coins. Half a count
    is added to each deviation, as exact balance of a few rows is no wonder.

    Args:
        rows: ``(rows, weights)``; zeros have no sign and do not count.
    """
    from scipy.stats import chi2

    counted = (rows != 0).sum(1).double()
    deviation = ((rows < 0).sum(1) - counted / 2).abs() + 0.5
    used = counted > 0
    if not used.any():
        return 0.0
    statistic = float((deviation[used].square() / (counted[used] / 4)).sum())
    return max(0.0, 1 - statistic / float(chi2.ppf(CHANCE, int(used.sum()))))


def negative(rows: Tensor) -> float:
    """By how much more than half of the rows have a negative sum, from 0 to 1.

    Args:
        rows: ``(rows, weights)``; rows of zeros do not count.
    """
    from scipy.stats import beta

    sums = rows[(rows != 0).any(1)].double().sum(1)
    below = int((sums < 0).sum())
    if not below:
        return 0.0
    # The exact lower confidence bound of a share (Clopper and Pearson 1934).
    share = float(beta.ppf(CHANCE, below, len(sums) - below + 1))
    return max(0.0, 2 * share - 1)


def one_hot(weight: Tensor, groups: int = 1) -> float:
    """Share of a layer's inputs that rows with a single weight hand on, from 0 to 1.

    Zero where zeros at random places, as many as there are, would leave as many such rows.

    Args:
        weight: ``(out, in / groups, *kernel)``.
        groups: Groups of a convolution; inputs are its channels.
    """
    from scipy.stats import binom

    rows = weight.flatten(1) != 0
    single = rows.sum(1) == 1
    size, density = rows.shape[1], float(rows.double().mean())
    expected = size * density * (1 - density) ** (size - 1)
    if int(single.sum()) <= binom.ppf(1 - CHANCE, len(rows), min(1.0, expected)):
        return 0.0
    channel = rows[single].int().argmax(1) // math.prod(weight.shape[2:])
    group = single.nonzero().flatten() // (len(rows) // groups)
    handed_on = torch.unique(group * weight.shape[1] + channel)
    return len(handed_on) / (weight.shape[1] * groups)


def duplicates(rows: Tensor, rng: np.random.Generator) -> float:
    """Share of rows that are a positive multiple of another one, from 0 to 1.

    Args:
        rows: ``(rows, weights)``; those with a single weight do not count as one.
        rng: Source of a direction by which rows are sorted.
    """
    kept = rows[(rows != 0).sum(1) > 1]
    if len(kept) < 2:
        return 0.0
    unit = kept / kept.norm(dim=1, keepdim=True)
    # Rows that are the same lie side by side when sorted along any direction.
    direction = torch.from_numpy(rng.standard_normal(rows.shape[1]).astype(np.float32))
    order = (unit @ direction).argsort()
    found = torch.zeros(len(kept), dtype=torch.bool)
    for ahead in (1, 2):  # rounding may put another one between two of them
        one, other = order[:-ahead], order[ahead:]
        same = (unit[one] - unit[other]).abs().amax(1) < _SAME
        found[one[same]] = found[other[same]] = True
    return float(found.sum()) / len(rows)


def distance(values: Values, others: npt.NDArray[np.generic]) -> float:
    """Kolmogorov-Smirnov distance of two samples less what chance makes of it, from 0 to 1."""
    from scipy.stats import ks_2samp

    n, m = len(values), len(others)
    chance = math.sqrt(-math.log(CHANCE / 2) / 2 * (n + m) / (n * m))
    return max(0.0, float(ks_2samp(values, others, method="asymp").statistic) - chance)


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Dense layers and convolutions by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.detach().cpu().float()


def _sample(layer: nn.Module, rng: np.random.Generator) -> Values:
    """A layer's weights, or so many of them drawn at random."""
    weights: Values = _weight(layer).numpy().ravel()
    if len(weights) <= _SAMPLE:
        return weights.copy()
    return weights[rng.integers(0, len(weights), _SAMPLE)]


def _remembered(turn: Turn) -> Mapping[str, npt.NDArray[np.generic]]:
    """What the client kept of the weights of its last round, by layer."""
    record = turn.state.array_records.get(turn.label)
    return {} if record is None else {name: array.numpy() for name, array in record.items()}
