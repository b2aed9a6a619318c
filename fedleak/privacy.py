"""What noise guarantees."""

from __future__ import annotations

import math

KNOWN_SEED = (
    "That holds of noise that nobody knows: FedLeak draws it from the scenario's seed, so that "
    "runs repeat, and who has the seed can take it off."
)
"""What a reader must know of the guarantees of a run that can be repeated."""

_ROUNDED = 1e4
"""Ratio of sensitivity to noise above which the exact epsilon is lost to rounding."""


def delta_too_large(delta: float, examples: int) -> str | None:
    """Why a client with so many samples must not speak of such a delta; None if it may."""
    if delta < 1 / examples:
        return None
    return (
        f"delta must be below 1 / samples, and a client trains on {examples}: below "
        f"{1 / examples:.3g}. A mechanism that hands out one sample in full would have the one "
        "given."
    )


def gaussian_epsilon(ratio: float, delta: float) -> float:
    """Least epsilon of the Gaussian mechanism (Balle and Wang 2018, Theorem 8).

    Where next to nothing is hidden a bound takes its place, above it by less than 0.1 %.

    Args:
        ratio: Sensitivity over standard deviation, > 0.
        delta: In (0, 1).
    """
    # A looser bound that holds for every Gaussian mechanism (Bun and Steinke 2016).
    most = ratio**2 / 2 + ratio * math.sqrt(2 * math.log(1 / delta))
    if ratio > _ROUNDED:
        return most
    # scipy takes a while to import.
    from scipy.optimize import brentq
    from scipy.special import log_ndtr, ndtr

    def above(epsilon: float) -> float:
        far = math.exp(epsilon + float(log_ndtr(-ratio / 2 - epsilon / ratio)))
        return float(ndtr(ratio / 2 - epsilon / ratio)) - far - delta

    if above(0.0) <= 0:
        return 0.0
    return float(brentq(above, 0.0, most))
