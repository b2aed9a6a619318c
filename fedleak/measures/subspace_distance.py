"""How far an attribute turns the subspaces of gradients (Mo et al., Sec. IV-C)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedleak.gradients import UpdateMap
from fedleak.measures.attributes import NoSuchAttribute, having
from fedleak.measures.layers import layers_of, released
from fedleak.measures.measure import Evidence, Measure, Value
from fedleak.records import Dataset, Indices, Observation, Setting, TrainingFacts
from fedleak.seeding import stream

_BATCH = 64


class SubspaceDistance(Measure):
    """Grassmann distance between mean gradients with and without a private attribute.

    Mo et al. (arXiv:2105.13929v3), Eq. 9 and 10. The gradients of the model that was sent
    are averaged over training samples that have the attribute and over others that do not.
    Of each layer's two means, the principal angles between the column spaces are taken
    (Björck and Golub 1973, by `scipy.linalg.subspace_angles`), and the distance is the root
    of their summed squares, in radians.

    A weight is a matrix with a row for each neuron, or each filter, and a column for each
    of its inputs: a convolution's ``(out, in, h, w)`` is read as ``(out, in * h * w)``. It is
    transposed where that makes it tall, for the columns of a wide matrix span all there
    is. Scales and biases are left out. A space is spanned by the left singular vectors
    whose value is above ``tolerance`` of the largest. Of two spaces that differ in
    dimension, the smaller one's angles count (Ye and Lim 2016); ``subspace-rank`` is their
    number, and a distance cannot exceed its root times pi / 2.

    Gradients are those of the loss alone, in float64, without weight decay.
    """

    kind: Literal["subspace-distance"] = "subspace-distance"
    attribute: str = Field(description="attribute of the data, for example gender")
    value: str | int | None = Field(
        None, description="its value that counts as having it; the last in order of two"
    )
    above: float | None = Field(
        None, description="of numbers, in place of value: what is above counts as having it"
    )
    samples: int = Field(
        256, ge=1, le=1_000_000, description="samples with the attribute and without, at most"
    )
    tolerance: float = Field(
        1e-3, gt=0, lt=1, description="singular values below this part of the largest are none"
    )

    of: ClassVar[Literal["client", "round"]] = "round"
    needs: ClassVar[frozenset[Literal["truth", "data", "release"]]] = frozenset({"data"})
    metrics: ClassVar[tuple[str, ...]] = ("subspace-distance", "subspace-rank")

    @model_validator(mode="after")
    def _one_way_to_have_it(self) -> Self:
        if self.value is not None and self.above is not None:
            raise ValueError("give value or above, not both")
        return self

    def unsupported(self, setting: Setting) -> str | None:
        if setting.data is None:
            return None
        try:
            self._having(setting.data.train)
        except NoSuchAttribute as reason:
            return str(reason)
        return None

    def _having(self, dataset: Dataset) -> npt.NDArray[np.bool_]:
        return having(dataset, self.attribute, self.value, self.above)

    def measure(self, evidence: Evidence) -> Iterator[Value]:
        assert evidence.data is not None
        train = evidence.data.train
        draw = stream(evidence.seed, "subspace-distance")
        found = self._having(train)
        means = []
        for side in (False, True):
            members = np.flatnonzero(found == side)
            chosen = np.sort(draw.permutation(members)[: self.samples])
            means.append(_mean_gradient(evidence.observation, train, chosen))
            evidence.progress(int(side) + 1, 2)
        without, with_it = means
        for layer, names in layers_of(released(evidence.observation, without)).items():
            angles = [
                angle
                for name in names
                if without[name].dim() >= 2
                for angle in principal_angles(
                    as_matrix(without[name]), as_matrix(with_it[name]), self.tolerance
                )
            ]
            if angles:
                yield Value("subspace-distance", math.hypot(*angles), layer)
                yield Value("subspace-rank", len(angles), layer)


def as_matrix(weight: Tensor) -> npt.NDArray[np.float64]:
    """A weight's gradient as a tall matrix ``(n, k)``, ``n >= k``; see `SubspaceDistance`."""
    matrix = weight.flatten(1)
    tall = matrix if len(matrix) >= matrix.shape[1] else matrix.T
    return np.asarray(tall.cpu().numpy(), dtype=np.float64)


def principal_angles(
    one: npt.NDArray[np.float64], other: npt.NDArray[np.float64], tolerance: float
) -> npt.NDArray[np.float64]:
    """Between the column spaces of ``(n, k)`` matrices, in radians; none where one is zero."""
    from scipy.linalg import subspace_angles

    bases = []
    for matrix in (one, other):
        vectors, values, _ = np.linalg.svd(matrix, full_matrices=False)
        bases.append(vectors[:, values > tolerance * values[0]])
    if not all(basis.size for basis in bases):
        return np.zeros(0)
    return np.asarray(subspace_angles(*bases))


def _mean_gradient(
    observation: Observation, dataset: Dataset, chosen: Indices
) -> dict[str, Tensor]:
    """Of the loss at the parameters sent, over the chosen samples, float64.

    Where batch norm uses the statistics of a batch, a batch has at most 64 samples.
    """
    parameters, buffers = (
        {name: value.double() if value.is_floating_point() else value for name, value in each}
        for each in (observation.parameters.items(), observation.buffers.items())
    )
    like = next(iter(parameters.values()))
    mean = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for start in range(0, len(chosen), _BATCH):
        batch = chosen[start : start + _BATCH]
        facts = TrainingFacts(
            observation.facts.lr, 1, len(batch), len(batch), train_mode=observation.facts.train_mode
        )
        inputs = torch.from_numpy(dataset.samples(batch)).to(like.device)
        labels = torch.from_numpy(dataset.labels[batch]).to(like.device)
        update = UpdateMap(observation.model, parameters, buffers, facts)(
            (inputs.to(like) if inputs.is_floating_point() else inputs)[None], labels[None]
        )
        for name, value in update.items():
            mean[name] += value[0] * (len(batch) / len(chosen))
    return mean
