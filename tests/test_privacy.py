"""Epsilon of the Gaussian mechanism, against the divergence integrated numerically."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedleak.privacy import gaussian_epsilon


@pytest.mark.parametrize("ratio", [0.01, 0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("delta", [1e-8, 1e-5, 0.01])
def test_epsilon_is_that_of_the_gaussian_mechanism(ratio, delta):
    """And it is the least such epsilon."""
    epsilon = gaussian_epsilon(ratio, delta)

    def divergence(at):
        x = np.linspace(-12, 12 + ratio, 400_001)
        p, q = stats.norm.pdf(x, ratio), stats.norm.pdf(x)
        return np.trapezoid(np.maximum(p - math.exp(at) * q, 0), x)

    assert divergence(epsilon) <= delta * 1.001
    if epsilon:
        assert divergence(epsilon) == pytest.approx(delta, rel=1e-3)


def test_epsilon_where_next_to_nothing_is_hidden_is_close_to_exact():
    assert gaussian_epsilon(1.001e4, 1e-5) == pytest.approx(
        gaussian_epsilon(0.999e4, 1e-5) * (1.001 / 0.999) ** 2, rel=1e-3
    )
