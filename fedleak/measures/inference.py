"""A family of models that infer whether gradients come from one kind of batch or another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Truths = npt.NDArray[np.bool_]
Member = Literal["forest", "logistic", "mlp"]
MEMBERS: tuple[Member, ...] = get_args(Member)

_MOST_DEVIATIONS = 5.0
"""Beyond this many standard deviations, entries count as being that far."""

_FOLDS = 10

_LEAST = 1e-6
"""No outcome is held to be less likely than this."""


@dataclass(frozen=True)
class Part:
    """Gradients and what they come from.

    Attributes:
        gradients: ``(n, entries)``.
        has: ``(n,)``, whether the batch has the attribute.
    """

    gradients: Floats
    has: Truths


def information(
    family: tuple[Member, ...], fit: Part, calibrate: Part, held_out: Part, prior: float, seed: int
) -> dict[str, Floats]:
    """Usable information of every gradient held out, in bits (Mo et al., Eq. 1).

    Each model is fitted on the first part. On the second its outputs are made
    probabilities (Platt 1999), and of each kind the model with the greatest likelihood
    there is taken, cross-validated, for a calibration to noise looks good where it was
    made; so what it was taken for says nothing of the third part, which alone
    is scored: ``log2 f[g](p) - log2 f[0](p)``. To ignore the gradients is a model too (Xu et
    al. 2020, "optional ignorance"): it gives 0.

    Args:
        family: Kinds of models.
        fit: Gradients to fit on, of both kinds.
        calibrate: Gradients to calibrate and choose on, of both kinds.
        held_out: Gradients to score.
        prior: Probability of the attribute with no gradient seen.
        seed: Fixes random draws.

    Returns:
        ``(n,)`` by kind, and by ``""`` of the family's best.
    """
    best: dict[str, tuple[float, Floats]] = {}
    ignorant = float(_bits(np.full(len(calibrate.has), prior), calibrate.has, prior).mean())
    nothing = np.zeros(len(held_out.has))
    rotate = _Rotation(fit.gradients)
    parts = fit, calibrate, held_out
    rotated = [replace(part, gradients=rotate(part.gradients)) for part in parts]
    for kind in family:
        own, choosing, scored = parts if kind == "forest" else rotated
        for model in _models(kind, seed):
            calibrated, expected = _calibrated(model, own, choosing)
            gain = float(_bits(expected, choosing.has, prior).mean())
            found = _bits(calibrated(scored.gradients), scored.has, prior)
            for name, least in ((kind, -np.inf), ("", ignorant)):
                if gain > best.get(name, (least, nothing))[0]:
                    best[name] = gain, found
    return {"": nothing} | {name: found for name, (_, found) in best.items()}


def _bits(probability: Floats, has: Truths, prior: float) -> Floats:
    """``log2 f[g](p) - log2 f[0](p)`` from the probabilities of having the attribute."""
    likelihood = np.where(has, probability, 1 - probability)
    return np.log2(np.maximum(likelihood, _LEAST)) - np.log2(np.where(has, prior, 1 - prior))


def _models(kind: Member, seed: int) -> Iterator[Any]:
    """Models of one kind, not fitted, with what is to be tuned in several values."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    random_state = seed % 2**32
    if kind == "forest":
        # As in the code that Melis et al. (2019) released.
        yield RandomForestClassifier(
            100, min_samples_leaf=5, min_samples_split=5, random_state=random_state
        )
    for penalty in () if kind == "forest" else (0.01, 1.0, 100.0):
        if kind == "logistic":
            yield LogisticRegression(C=1 / penalty, max_iter=1000)
        else:
            yield MLPClassifier((32,), alpha=penalty, max_iter=300, random_state=random_state)


class _Rotation:
    """Standardises entries, and turns them so that as many as there are gradients are left.

    Models that only see inner products of gradients, such as logistic regression with a
    squared penalty, are the same on both sides of it. The widest axis has deviation 1.
    """

    def __init__(self, gradients: Floats) -> None:
        """Learn it from gradients ``(n, entries)``."""
        gradients = gradients.astype(np.float64)
        self._mean = gradients.mean(0)
        spread = gradients.std(0)
        # Entries that never change say nothing; without this they would be rounding noise.
        self._scale = np.where(spread > 1e-9 * np.abs(gradients).max(), spread, np.inf)
        points = self._standardised(gradients)
        values, vectors = np.linalg.eigh(points @ points.T)
        kept = values > 1e-10 * max(values.max(), 1e-300)
        widest = np.sqrt(max(values.max(), 1e-300) / len(gradients))
        self._axes = points.T @ (vectors[:, kept] / np.sqrt(values[kept])) / widest

    def __call__(self, gradients: Floats) -> Floats:
        rotated = self._standardised(gradients) @ self._axes
        # One axis at least, or there would be nothing to fit.
        return rotated if rotated.shape[1] else np.zeros((len(rotated), 1))

    def _standardised(self, gradients: Floats) -> Floats:
        # Rows of classes that no batch held to fit on are nearly still, and leap where one
        # held out has them: no entry may outweigh all others.
        standardised: Floats = (gradients - self._mean) / self._scale
        return standardised.clip(-_MOST_DEVIATIONS, _MOST_DEVIATIONS)


def _calibrated(
    model: Any, fit: Part, calibrate: Part
) -> tuple[Callable[[Floats], Floats], Floats]:
    """Fit a model: from gradients to probabilities of having the attribute.

    Returns:
        It, and the probabilities of each gradient to calibrate on, ``(n,)``, by calibrations
        that did not see it.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.model_selection import cross_val_predict

    given = calibrate.gradients, calibrate.has
    folds = min(_FOLDS, *np.bincount(calibrate.has))
    # A fitted model gives the same outputs in every fold, so two do inside.
    calibrated = CalibratedClassifierCV(
        FrozenEstimator(model), method="sigmoid", ensemble=False, cv=2
    )
    with warnings.catch_warnings():
        # Stopping early is a form of regularisation; which is best is seen in calibration.
        # Of few batches of one kind, a fold may have none.
        warnings.simplefilter("ignore", UserWarning)
        model.fit(fit.gradients, fit.has)
        unseen = cross_val_predict(calibrated, *given, cv=folds, method="predict_proba")
        calibrated.fit(*given)

    def probability(gradients: Floats) -> Floats:
        found: Floats = calibrated.predict_proba(gradients)[:, 1]
        return found

    return probability, unseen[:, 1]
