"""Trap rows against Algorithm 1, and against the activity that the paper prints."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from fedleak.data import Mnist5k
from fedleak.traps import trap_rows


def rows(neurons: int, pixels: int, seed: int = 0, **settings: float) -> torch.Tensor:
    settings = {"scaling": 0.5, "sigma": 1.0, **settings}
    return trap_rows(neurons, pixels, rng=np.random.default_rng(seed), **settings)


@pytest.mark.parametrize("pixels", [2, 64, 3072, 7, 1])
def test_every_row_is_balanced(pixels: int) -> None:
    made = rows(200, pixels)
    assert ((made < 0).sum(1) == pixels // 2).all()
    assert ((made > 0).sum(1) == pixels // 2).all()


def test_positive_weights_are_the_negative_ones_scaled_and_shuffled() -> None:
    made = rows(20, 50, scaling=0.8).numpy()
    for row in made:
        np.testing.assert_allclose(np.sort(row[row > 0]), np.sort(-0.8 * row[row < 0]), rtol=1e-6)
    signs = np.sign(made)
    assert len(np.unique(signs, axis=0)) == 20
    # Of two neighbours one is negative with probability a half, whatever the other is.
    assert abs((signs[:, 1:] * signs[:, :-1]).mean()) < 0.15


def test_absolute_values_are_those_of_a_normal_distribution() -> None:
    from scipy.stats import halfnorm, kstest

    made = rows(50, 1000, sigma=0.3).numpy()
    assert kstest(-made[made < 0], halfnorm(scale=0.3).cdf).pvalue > 1e-3


def test_the_odd_pixel_out_is_another_in_each_row() -> None:
    left_out = (rows(500, 5) == 0).double().mean(0)
    torch.testing.assert_close(left_out, torch.full((5,), 0.2).double(), atol=0.08, rtol=0)


def test_the_same_draws_give_the_same_rows() -> None:
    assert torch.equal(rows(5, 8, seed=1), rows(5, 8, seed=1))
    assert not torch.equal(rows(5, 8, seed=1), rows(5, 8, seed=2))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"scaling": 1.0}, "between 0 and 1, got 1"),
        ({"scaling": 0.0}, "between 0 and 1, got 0"),
        ({"sigma": 0.0}, "sigma must be above 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        rows(2, 2, **settings)


@pytest.mark.parametrize(
    ("scaling", "active", "precision", "recall"),
    [
        (0.4, 0.022, 0.803, 0.114),
        (0.5, 0.149, 0.636, 0.354),
        (0.6, 0.462, 0.408, 0.526),
        (0.7, 0.796, 0.203, 0.540),
        (0.8, 0.959, 0.062, 0.334),
        (0.9, 0.996, 0.010, 0.089),
    ],
)
def test_table_5(scaling: float, active: float, precision: float, recall: float) -> None:
    """MNIST, B = 100, N = 1000: counted from which samples activate which neurons."""
    images = torch.from_numpy(Mnist5k().load().train.inputs).flatten(1) / 255
    rng = np.random.default_rng(0)
    counted = []
    for seed in range(10):
        batch = images[rng.choice(len(images), 100, replace=False)]
        activates = batch @ rows(1000, 784, seed, scaling=scaling).T > 0
        by = activates.sum(0)
        alone = activates[:, by == 1].any(1)
        shares = (by > 0).double().mean(), (by == 1).sum() / (by > 0).sum(), alone.double().mean()
        counted.append([float(share) for share in shares])
    measured = np.mean(counted, axis=0)
    assert measured[0] == pytest.approx(active, abs=0.05)
    assert measured[1] == pytest.approx(precision, abs=0.08)
    assert measured[2] == pytest.approx(recall, abs=0.10)


def test_a_thousand_rows_for_cifar_take_less_than_a_second() -> None:
    started = time.process_time()
    rows(1000, 3 * 32 * 32)
    assert time.process_time() - started < 1
