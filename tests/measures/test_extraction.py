"""Extraction scores of hand-made rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedleak.measures import EXTRACTION_SCORES, extraction
from fedleak.records import Reconstruction, Truth

TRUTH = np.random.default_rng(0).random((5, 1, 4, 4), dtype=np.float32)


def scores(rows: torch.Tensor, found: torch.Tensor, neurons: int = 20) -> dict[str, float]:
    reconstruction = Reconstruction(found, None, torch.ones(len(found)))
    truth = Truth(TRUTH, np.zeros(5, np.int64))
    counts = extraction(rows, torch.from_numpy(TRUTH), neurons, reconstruction, truth)
    return {score.kind_name(): score().value(counts) for score in EXTRACTION_SCORES}


def test_each_metric_by_its_own_name() -> None:
    truth = torch.from_numpy(TRUTH)
    mixed = (truth[0] + truth[1]) / 2
    # Eight of twenty neurons are active: five rows give three samples, three are mixtures.
    rows = torch.stack([*truth[[0, 0, 1, 2, 2]], mixed, mixed, 1 - truth[0]])
    found = torch.stack([truth[2], truth[0] + 1e-3, mixed])
    assert scores(rows, found) == {
        "active-neurons": pytest.approx(8 / 20),
        "extraction-precision-active": pytest.approx(5 / 8),
        "extraction-precision": pytest.approx(5 / 20),
        "extraction-recall": pytest.approx(2 / 5),
    }


@pytest.mark.parametrize(("error", "exact"), [(1.9e-3, True), (2.1e-3, False)])
def test_exact_is_half_a_step_of_eight_bits_in_every_value(error: float, exact: bool) -> None:
    off = torch.from_numpy(TRUTH[:1].copy())
    off[0, 0, 2, 3] -= error
    found = scores(off, off)
    assert (found["extraction-recall"] == 0.2) == exact
    assert (found["extraction-precision-active"] == 1) == exact


def test_nothing_active_and_nothing_found_is_zero() -> None:
    none = torch.zeros(0, 1, 4, 4)
    assert set(scores(none, none).values()) == {0.0}


def test_rows_that_are_not_finite_are_no_samples() -> None:
    rows = torch.full((2, 1, 4, 4), torch.nan)
    rows[1] = torch.inf
    assert scores(rows, torch.zeros(0, 1, 4, 4))["extraction-precision"] == 0
