"""Correlations of inferred with true representations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from fedleak.attacks.representation import class_representations
from fedleak.measures import Evidence, RepresentationLeakage
from fedleak.records import Dataset, DataSplits, Setting, TrainingFacts, Truth

Client = Callable[..., Evidence]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 80), nn.ReLU(), nn.Linear(80, 40), nn.ReLU(), nn.Linear(40, 3)
    ).double()


def test_one_sample_shows_its_representations(net: nn.Module, client: Client) -> None:
    rows = list(RepresentationLeakage().measure(client(net)))
    assert [(row.metric, row.layer) for row in rows] == [
        ("representation-correlation", layer) for layer in "135"
    ]
    for row in rows:
        assert row.value == pytest.approx(1)
        assert np.isnan(row.low)


def test_it_is_pearsons_correlation_averaged_over_classes(net: nn.Module, client: Client) -> None:
    given = client(net, 8, batch_size=8)
    assert given.truth is not None
    labels, counts = np.unique(given.truth.labels, return_counts=True)
    assert len(labels) == 3
    inferred = class_representations(
        given.observation, torch.from_numpy(labels), torch.from_numpy(counts)
    )
    inputs = torch.from_numpy(given.truth.inputs)
    for row in RepresentationLeakage().measure(given):
        assert row.layer is not None
        seen = net[: int(row.layer)](inputs).detach().numpy()
        each = [
            np.corrcoef(
                inferred[row.layer][index].numpy(), seen[given.truth.labels == label].mean(0)
            )
            for index, label in enumerate(labels)
        ]
        assert row.value == pytest.approx(np.mean([table[0, 1] for table in each]))
        assert row.low < row.value < row.high


def test_a_representation_of_zero_has_no_correlation(net: nn.Module, client: Client) -> None:
    given = client(net)
    assert given.truth is not None
    black = Truth(np.zeros_like(given.truth.inputs), given.truth.labels)
    first, *others = RepresentationLeakage().measure(dataclasses.replace(given, truth=black))
    assert np.isnan(first.value)
    assert all(np.isfinite(row.value) for row in others)


def test_what_the_inference_cannot_do_is_unsupported(net: nn.Module) -> None:
    facts, measure = TrainingFacts(0.1, 1, 1, 1), RepresentationLeakage()
    assert measure.unsupported(Setting(net, facts, (1, 4, 4), 3, None)) is None
    convolution = nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten())
    told = measure.unsupported(Setting(convolution, facts, (1, 4, 4), 3, None))
    assert told is not None and "dense layer" in told
    texts = Dataset(np.zeros((1, 9), np.int64), np.zeros(1, np.int64), 2, {}, ("a", "b"))
    told = measure.unsupported(Setting(net, facts, (9,), 2, DataSplits(texts, texts)))
    assert told is not None and "texts" in told
