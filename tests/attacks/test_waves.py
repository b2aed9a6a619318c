from __future__ import annotations

import numpy as np
import torch
from scipy.fft import dctn, idctn

from fedleak.attacks.waves import Waves


def test_units_fall_with_the_root_of_the_frequency() -> None:
    images = torch.randn(2, 1, 3, 8, 6, dtype=torch.float64)
    rows, columns = np.arange(8)[:, None] / 8, np.arange(6) / 6
    frequency = np.maximum(np.sqrt(rows**2 + columns**2), 1 / 8)
    spectrum = dctn(images.numpy(), axes=(-2, -1), norm="ortho") * (8 * frequency) ** -0.5
    expected = idctn(spectrum, axes=(-2, -1), norm="ortho")
    np.testing.assert_allclose(Waves(images).pixels(images).numpy(), expected, rtol=1e-6)


def test_it_is_symmetric_and_can_be_undone() -> None:
    one, other = torch.randn(2, 1, 1, 3, 7, 5, dtype=torch.float64)
    waves = Waves(one)
    torch.testing.assert_close((waves.pixels(one) * other).sum(), (one * waves.pixels(other)).sum())
    torch.testing.assert_close(waves.variables(waves.pixels(one)), one)


def test_flat_samples_are_left_alone() -> None:
    flat = torch.randn(2, 3, 10)
    assert torch.equal(Waves(flat).pixels(flat), flat)
    assert torch.equal(Waves(flat).variables(flat), flat)
