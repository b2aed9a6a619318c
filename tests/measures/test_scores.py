"""Scores against their formulas, written out in float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedleak.measures import MSE, PSNR, SAMPLE_SCORES, SSIM, LabelAccuracy
from fedleak.records import Reconstruction, Truth


def pairs(
    *shape: int, seed: int = 0, noise: float = 0.1
) -> tuple[Reconstruction, Truth, np.ndarray]:
    """Smooth images and noisy copies of them, in the same order."""
    rng = np.random.default_rng(seed)
    original = np.cumsum(rng.normal(size=shape), axis=-1)
    original = (original - original.min()) / np.ptp(original)
    noisy = np.clip(original + noise * rng.normal(size=shape), 0, 1).astype(np.float32)
    reconstruction = Reconstruction(
        torch.from_numpy(noisy), torch.zeros(shape[0], dtype=torch.int64), torch.ones(shape[0])
    )
    truth = Truth(original.astype(np.float32), np.zeros(shape[0], np.int64))
    return reconstruction, truth, np.arange(shape[0])


def squared_errors(reconstruction: Reconstruction, truth: Truth) -> np.ndarray:
    difference = reconstruction.inputs.numpy().astype(np.float64) - truth.inputs
    return (difference**2).reshape(len(difference), -1).mean(1)


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 9, 12), (4, 20), (1, 1, 28, 28)])
def test_mse_and_psnr(shape: tuple[int, ...]) -> None:
    reconstruction, truth, matches = pairs(*shape)
    expected = squared_errors(reconstruction, truth)
    mse = MSE().score(reconstruction, truth, matches)
    psnr = PSNR().score(reconstruction, truth, matches)
    np.testing.assert_allclose(mse, expected, rtol=1e-12)
    np.testing.assert_allclose(psnr, -10 * np.log10(expected), rtol=1e-7)


def test_psnr_of_known_errors() -> None:
    original = np.full((3, 1, 4, 4), 0.5, np.float32)
    made = torch.from_numpy(original.copy())
    made[0] += 0.25
    made[1] += 1e-7
    reconstruction = Reconstruction(made, None, torch.ones(3))
    values = PSNR().score(reconstruction, Truth(original, np.zeros(3, np.int64)), np.arange(3))
    assert values.tolist() == [pytest.approx(20 * math.log10(4)), 100, 100]


def mirrored_ssim(one: np.ndarray, other: np.ndarray, reach: int) -> float:
    """Wang et al. 2004, Eq. 13, of two ``(C, H, W)`` images, window by window."""
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-(offsets**2) / (2 * (1.5 * reach / 5) ** 2))
    window = np.outer(weights, weights)
    window /= window.sum()
    values = []
    for x, y in zip(one.astype(np.float64), other.astype(np.float64), strict=True):
        x, y = np.pad(x, reach, mode="reflect"), np.pad(y, reach, mode="reflect")
        for row in range(one.shape[1]):
            for column in range(one.shape[2]):
                place = np.s_[row : row + 2 * reach + 1, column : column + 2 * reach + 1]
                a, b = x[place], y[place]
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a = (window * (a - mean_a) ** 2).sum()
                var_b = (window * (b - mean_b) ** 2).sum()
                cov = (window * (a - mean_a) * (b - mean_b)).sum()
                values.append(
                    (2 * mean_a * mean_b + 0.01**2)
                    * (2 * cov + 0.03**2)
                    / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2))
                )
    return float(np.mean(values))


@pytest.mark.parametrize(
    ("shape", "reach"),
    [
        ((2, 1, 28, 28), 5),
        ((1, 3, 12, 9), 5),
        ((2, 1, 6, 8), 5),
        ((2, 2, 4, 9), 3),
        ((1, 1, 2, 2), 1),
    ],
)
def test_ssim(shape: tuple[int, ...], reach: int) -> None:
    reconstruction, truth, matches = pairs(*shape)
    expected = [
        mirrored_ssim(a, b, reach)
        for a, b in zip(reconstruction.inputs.numpy(), truth.inputs, strict=True)
    ]
    np.testing.assert_allclose(
        SSIM().score(reconstruction, truth, matches), expected, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("shape", [(2, 20), (2, 1, 1, 9)])
def test_ssim_does_not_apply_to_what_is_no_image(shape: tuple[int, ...]) -> None:
    assert SSIM().score(*pairs(*shape)).isnan().all()


def test_label_accuracy_counts_a_missing_match_as_wrong() -> None:
    reconstruction = Reconstruction(torch.zeros(3, 2), torch.tensor([7, 1, 4]), torch.ones(3))
    truth = Truth(np.zeros((4, 2), np.float32), np.array([1, 7, 5, 4]))
    values = LabelAccuracy().score(reconstruction, truth, np.array([1, 0, 2, -1]))
    assert values.tolist() == [1, 1, 0, 0]


def test_label_accuracy_does_not_apply_without_labels() -> None:
    reconstruction = Reconstruction(torch.zeros(2, 2), None, torch.ones(2))
    truth = Truth(np.zeros((2, 2), np.float32), np.array([1, 7]))
    assert LabelAccuracy().score(reconstruction, truth, np.array([0, 1])).isnan().all()


@pytest.mark.parametrize("score", SAMPLE_SCORES, ids=lambda score: score.kind_name())
def test_nothing_found_scores_nothing(score: type) -> None:
    reconstruction = Reconstruction(
        torch.zeros(0, 1, 28, 28), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    )
    _, truth, _ = pairs(2, 1, 28, 28)
    values = score().score(reconstruction, truth, np.array([-1, -1]))
    assert values.shape == (2,)
    assert not (values > 0).any()


def test_only_matched_samples_are_compared() -> None:
    reconstruction, truth, _ = pairs(3, 1, 12, 12)
    swapped = Reconstruction(reconstruction.inputs[[2, 0]], None, torch.ones(2))
    values = MSE().score(swapped, truth, np.array([1, -1, 0]))
    expected = squared_errors(reconstruction, truth)
    assert values[1].isnan()
    np.testing.assert_allclose(values[[0, 2]], expected[[0, 2]], rtol=1e-12)
