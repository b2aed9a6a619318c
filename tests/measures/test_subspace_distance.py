"""Grassmann distances of known subspaces, and of gradients by plain autograd."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import nn

from fedleak.measures import Evidence, SubspaceDistance
from fedleak.measures.subspace_distance import as_matrix, principal_angles
from fedleak.records import Dataset, DataSplits, Setting, TrainingFacts

Client = Callable[..., Evidence]
SAMPLES, CLASSES, SHAPE = 150, 3, (1, 4, 4)


def splits(**attributes: list[object]) -> DataSplits:
    rng = np.random.default_rng(3)
    inputs = rng.random((SAMPLES, *SHAPE)).astype(np.float32)
    labels = rng.integers(CLASSES, size=SAMPLES)
    columns = {name: np.array(values) for name, values in attributes.items()}
    train = Dataset(inputs, labels, CLASSES, columns)
    return DataSplits(train, train)


WRITERS = [0, 4, 1] * (SAMPLES // 3)


def test_planes_turned_by_known_angles() -> None:
    turned = (0.3, 1.1)
    plane = np.zeros((6, 2))
    other = np.zeros((6, 2))
    for index, angle in enumerate(turned):
        plane[2 * index, index] = 1
        other[2 * index : 2 * index + 2, index] = math.cos(angle), math.sin(angle)
    # Other bases of the same planes, one of them larger than the plane.
    mixed = plane @ np.array([[2.0, 1.0], [0.0, 1.0]]), other @ np.array([[1.0, 3.0], [5.0, 1.0]])
    assert sorted(principal_angles(*mixed, 1e-9)) == pytest.approx(turned)
    assert sorted(principal_angles(mixed[0], np.hstack([mixed[1]] * 2), 1e-9)) == pytest.approx(
        turned
    )
    assert principal_angles(plane, np.zeros((6, 2)), 1e-9).size == 0


def test_the_tolerance_says_which_directions_count() -> None:
    rng = np.random.default_rng(0)
    one, other = (np.linalg.qr(rng.standard_normal((9, 3)))[0] for _ in range(2))
    scales = np.array([1.0, 0.1, 1e-4])
    for tolerance, rank in ((1e-5, 3), (1e-3, 2), (0.5, 1)):
        found = principal_angles(one * scales, other * scales, tolerance)
        expected = subspace_angles(one[:, :rank], other[:, :rank])
        assert found == pytest.approx(expected)


def test_a_filter_is_a_column_and_a_wide_matrix_is_transposed() -> None:
    weight = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2).float()
    matrix = as_matrix(weight)
    assert matrix.shape == (12, 2)
    assert matrix[:, 1].tolist() == weight[1].flatten().tolist()
    assert as_matrix(torch.zeros(7, 4)).shape == (7, 4)


@pytest.mark.parametrize(
    ("options", "has"),
    [
        ({"attribute": "sex"}, lambda n: n % 2 == 0),
        ({"attribute": "series", "value": "4"}, lambda n: n % 3 == 1),
        ({"attribute": "series", "above": 0.5}, lambda n: n % 3 != 0),
    ],
    ids=["two values", "a value", "above"],
)
def test_it_is_the_distance_of_mean_gradients(
    smooth_net: nn.Module, client: Client, options: dict[str, object], has: Callable[[int], bool]
) -> None:
    data = splits(series=WRITERS, sex=["male", "female"] * (SAMPLES // 2))
    given = dataclasses.replace(client(smooth_net, weight_decay=0.5), data=data)
    rows = list(SubspaceDistance(tolerance=1e-6, **options).measure(given))
    found = {(row.metric, row.layer): row.value for row in rows}
    with_it = np.array([has(index) for index in range(SAMPLES)])
    matrices = []
    for mask in (~with_it, with_it):
        inputs = torch.from_numpy(data.train.inputs[mask]).double()
        labels = torch.from_numpy(data.train.labels[mask])
        loss = nn.functional.cross_entropy(smooth_net(inputs), labels)
        weights = [smooth_net[index].weight for index in (0, 4, 6)]
        matrices.append([g.flatten(1).T.numpy() for g in torch.autograd.grad(loss, weights)])
    assert {layer for _, layer in found} == {"0", "4", "6"}
    # Softmax's gradients sum to zero over the classes: the last layer has one less.
    for layer, rank, one, other in zip("046", (3, 5, 2), *matrices, strict=True):
        if layer == "6":
            one, other = (np.linalg.svd(m)[0][:, :2] for m in (one, other))
        expected = math.sqrt((subspace_angles(one, other) ** 2).sum())
        assert found["subspace-distance", layer] == pytest.approx(expected, rel=1e-6)
        assert found["subspace-rank", layer] == rank


def test_no_more_samples_than_asked_for(smooth_net: nn.Module, client: Client) -> None:
    given = dataclasses.replace(client(smooth_net), data=splits(sex=[0, 1] * (SAMPLES // 2)))

    def distances(samples: int, seed: int = 0) -> list[float]:
        drawn = dataclasses.replace(given, seed=seed)
        return [v.value for v in SubspaceDistance(attribute="sex", samples=samples).measure(drawn)]

    assert distances(75) == distances(200) == distances(200, seed=1)
    assert distances(10) == distances(10) != distances(10, seed=1)


@pytest.mark.parametrize(
    ("column", "options", "reason"),
    [
        ({"sex": ["male", ""] * 75}, {"attribute": "sex"}, "no value for 75 of 150 samples"),
        ({"sex": ["male"] * SAMPLES}, {"attribute": "sex"}, "'male' for all 150 samples"),
        ({"series": WRITERS}, {"attribute": "series"}, "has 3 values"),
    ],
)
def test_an_attribute_that_says_nothing_is_refused(
    smooth_net: nn.Module, column: dict[str, list[object]], options: dict[str, object], reason: str
) -> None:
    measure = SubspaceDistance(**options)
    told = measure.unsupported(
        Setting(smooth_net, TrainingFacts(0.1, 1, 1, 1), SHAPE, CLASSES, splits(**column))
    )
    assert told is not None and reason in told


def test_one_way_to_have_an_attribute() -> None:
    with pytest.raises(ValueError, match="value or above, not both"):
        SubspaceDistance(attribute="age", value="1", above=3)
