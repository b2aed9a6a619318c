"""Sensitivity of gradients to the input (Mo et al., Sec. IV-B)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedleak.gradients import Update, UpdateMap
from fedleak.measures.intervals import mean_interval
from fedleak.measures.layers import layers_of, released
from fedleak.measures.measure import Evidence, Measure, Value
from fedleak.measures.pixels import not_pixels
from fedleak.records import Setting

_NORMS = ("f", "1", "inf")


class JacobianSensitivity(Measure):
    """Norms of the input-gradient Jacobian of every layer.

    Mo et al. (arXiv:2105.13929v3), Eq. 7 and 8. The Jacobian ``J_l = du_l / dx_k`` of a
    layer's update in one of the client's samples has a row per parameter and a column per
    pixel; for a client that trained one step on one sample it is Eq. 7, for others it holds
    what aggregation did. Its F-norm is the root of its summed squares. Its 1-norm and
    infinity-norm are the induced ones, the largest column sum and the largest row sum of
    magnitudes: Eq. 8 bounds ``||g(X) - g(X + dX)||_p`` by them, so 1 says how far one pixel
    moves the whole gradient, infinity how far all pixels together move one entry of it.

    Relative norms are over that of the layer's own update: its Euclidean norm, its sum and
    its largest magnitude. They are NaN where it is zero.

    A layer that came back as it was sent was held back and has no values. All layers and all
    norms come from one pass over the pixels. A sample has a row for
    each, and their mean has its 95 % interval over samples (Student's t).
    """

    kind: Literal["jacobian-sensitivity"] = "jacobian-sensitivity"
    samples: int = Field(
        8, ge=1, le=1_000_000, description="samples of a client that are measured, its first ones"
    )

    needs: ClassVar[frozenset[Literal["truth", "data", "release"]]] = frozenset({"truth"})
    metrics: ClassVar[tuple[str, ...]] = tuple(
        f"jacobian-{norm}-norm{relative}" for relative in ("", "-relative") for norm in _NORMS
    )

    def unsupported(self, setting: Setting) -> str | None:
        return not_pixels(setting)

    def measure(self, evidence: Evidence) -> Iterator[Value]:
        observation, truth = evidence.observation, evidence.truth
        assert truth is not None
        mapping = UpdateMap(
            observation.model, observation.parameters, observation.buffers, observation.facts
        )
        like = next(iter(observation.parameters.values()))
        inputs = torch.from_numpy(truth.inputs).to(like)
        labels = torch.from_numpy(truth.labels).to(like.device)
        update = {name: value[0] for name, value in mapping(inputs[None], labels[None]).items()}
        layers = layers_of(released(observation, update))
        sizes = {layer: _vector_norms(update[name] for name in layers[layer]) for layer in layers}
        count = min(self.samples, len(inputs))
        found: dict[tuple[str, str], list[float]] = {}
        for sample in range(count):
            evidence.progress(sample, count)
            columns = mapping.jacobian(inputs, labels, sample)
            for layer, norms in jacobian_norms(columns, layers).items():
                relative = (
                    norm / size if size else math.nan
                    for norm, size in zip(norms, sizes[layer], strict=True)
                )
                for metric, value in zip(self.metrics, (*norms, *relative), strict=True):
                    found.setdefault((layer, metric), []).append(value)
                    yield Value(metric, value, layer, sample)
        for (layer, metric), values in found.items():
            mean, low, high = mean_interval(values, least=0)
            yield Value(metric, mean, layer, low=low, high=high)


def jacobian_norms(
    columns: Iterable[Update], layers: Mapping[str, Sequence[str]]
) -> dict[str, tuple[float, float, float]]:
    """F-, 1- and infinity-norm of every layer's Jacobian, each column of which is seen once.

    Args:
        columns: Blocks ``(T, *parameter shape)`` by name, see `UpdateMap.jacobian`.
        layers: The parameters of each layer.
    """
    squares = dict.fromkeys(layers, 0.0)
    largest = dict.fromkeys(layers, 0.0)
    rows: dict[str, Tensor] = {}
    for block in columns:
        for layer, names in layers.items():
            sums: list[Tensor] = []
            for name in names:
                magnitudes = block[name].flatten(1).abs()
                squares[layer] += float(torch.linalg.vector_norm(magnitudes)) ** 2
                sums.append(magnitudes.sum(1))
                rows[name] = rows.get(name, 0) + magnitudes.sum(0)
            largest[layer] = max(largest[layer], float(torch.stack(sums).sum(0).max()))
    return {
        layer: (
            math.sqrt(squares[layer]),
            largest[layer],
            max(float(rows[name].max()) for name in names),
        )
        for layer, names in layers.items()
    }


def _vector_norms(parts: Iterable[Tensor]) -> tuple[float, float, float]:
    """Euclidean norm, sum and largest of the magnitudes."""
    whole = torch.cat([part.flatten() for part in parts])
    return float(whole.norm()), float(whole.abs().sum()), float(whole.abs().max())
