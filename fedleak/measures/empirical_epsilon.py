"""A lower bound on epsilon, from what an attacker can tell of a canary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from fedleak.errors import MeasureFailed
from fedleak.gradients import Update, UpdateMap
from fedleak.measures.measure import Evidence, Measure, Value
from fedleak.privacy import gaussian_epsilon
from fedleak.records import Truth
from fedleak.seeding import derive, stream

_CANDIDATES = 16

Scores = npt.NDArray[np.float64]


class EmpiricalEpsilon(Measure):
    """Audits the epsilon that DP-SGD claims, by the least that it can be.

    The attacker is the strongest that the claim is made against: it knows the weights, all
    other samples of the batch (here there are none), and the one of which it is to tell
    whether it was there, the canary. One local step is released many times on the canary and as
    many times on nobody, each time with noise of its own; each release is scored by its
    product with the canary's gradient (Nasr et al. 2021, gradient canaries). The canary is a
    sample with a wrong label: of 16 the one with the largest gradient.

    On one half of the releases a threshold is chosen, on the other half its rates of true and
    false alarms are bounded by exact binomial intervals (Clopper and Pearson). Together
    the bounds hold with the confidence that is asked for.

    - ``empirical-epsilon``: least epsilon at the claim's delta that such rates allow,
      ``log((true - delta) / false)`` or the same of silence. Supposes nothing of the
      mechanism, but needs on the order of ``exp(epsilon)`` releases to reach epsilon: even
      if every alarm is right, 500 show no more than 3.8.
    - ``empirical-epsilon-gaussian``: least epsilon if the noise is Gaussian of unknown size,
      from the separation that such rates allow (Nasr et al. 2023). Close to epsilon with
      few releases.
    - ``claimed-epsilon``: what the client claims of such a step, the Gaussian mechanism's exact
      epsilon for the noise multiplier and the delta that it reports.

    All three are of one step with the canary in the batch for certain. The epsilon that the
    client reports of its rounds follows from the claim by accounting for sampling and for all
    steps; it is refuted with the claim. A claim that holds is refuted with probability ``1 -
    confidence`` at most. Not refuted is not proved: another canary, or an error that
    shows in other weights, in sampling or between steps, is not seen here.
    """

    kind: Literal["empirical-epsilon"] = "empirical-epsilon"
    trials: int = Field(
        500, ge=20, le=10_000_000, description="releases with the canary, and as many without it"
    )
    confidence: float = Field(
        0.99, ge=0.5, lt=1, description="with which the lower bounds hold, each by itself"
    )

    needs: ClassVar[frozenset[Literal["truth", "data", "release"]]] = frozenset({"data", "release"})
    metrics: ClassVar[tuple[str, ...]] = (
        "empirical-epsilon",
        "empirical-epsilon-gaussian",
        "claimed-epsilon",
    )

    @property
    def note(self) -> str:
        return (
            "claimed-epsilon is what the noise of dp-sgd gives of one step that has the sample in "
            "its batch, dp-sgd/epsilon what the client claims of all its rounds. empirical-epsilon "
            f"is the least that the first can be; {self.trials} releases of each kind show no more "
            f"than {self.most:.3g}, and 0 says that they showed nothing, not that nothing leaks. "
            "empirical-epsilon-gaussian supposes Gaussian noise and can show more."
        )

    @property
    def most(self) -> float:
        """The largest ``empirical-epsilon`` that the releases can show: all alarms right."""
        ones = np.ones(self.trials)
        return epsilon_bound(ones, np.zeros(self.trials), 0.0, self.confidence)

    def measure(self, evidence: Evidence) -> Iterator[Value]:
        noise, delta = (
            evidence.reported.get(f"dp-sgd/{name}") for name in ("noise-multiplier", "delta")
        )
        if noise is None or delta is None:
            raise MeasureFailed(
                "the client claims no epsilon that could be audited; give it the dp-sgd defense, "
                "with noise"
            )
        present, absent = self._scores(evidence)
        yield Value("empirical-epsilon", epsilon_bound(present, absent, delta, self.confidence))
        separation = separation_bound(present, absent, self.confidence)
        gaussian = gaussian_epsilon(separation, delta) if separation > 0 else 0.0
        yield Value("empirical-epsilon-gaussian", gaussian)
        yield Value("claimed-epsilon", gaussian_epsilon(1 / noise, delta))

    def _scores(self, evidence: Evidence) -> tuple[Scores, Scores]:
        """What releases show of the canary when it was there and when it was not."""
        assert evidence.release is not None
        canary, gradient = _canary(evidence)
        nobody = Truth(canary.inputs[:0], canary.labels[:0])
        scores: dict[str, list[float]] = {"present": [], "absent": []}
        for trial in range(self.trials):
            evidence.progress(trial, self.trials)
            for truth, world in ((canary, "present"), (nobody, "absent")):
                seed = derive(evidence.seed, f"canary-{world}", round=trial)
                scores[world].append(_product(evidence.release(truth, seed), gradient))
        return np.array(scores["present"]), np.array(scores["absent"])


def epsilon_bound(present: Scores, absent: Scores, delta: float, confidence: float) -> float:
    """Lower bound on epsilon, supposing nothing of how scores are distributed.

    Args:
        present: ``(n,)``, scores of independent releases with the canary, >= 4 of them.
        absent: Likewise without it.
        delta: Of the guarantee, in [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).
    """

    def bound(often: Scores, seldom: Scores) -> Scores:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(np.maximum(often - delta, 0) / seldom)

    there, away = _halves(present), _halves(absent)
    options = []
    for sign in (1.0, -1.0):  # an alarm of presence, and one of absence
        guilty, innocent = (there, away) if sign > 0 else (away, there)
        levels = np.unique(sign * guilty[0])
        planned = bound(*_rates(levels, sign * guilty[0], sign * innocent[0], confidence))
        best = int(np.argmax(planned))
        found = bound(*_rates(levels[[best]], sign * guilty[1], sign * innocent[1], confidence))
        options.append((float(planned[best]), float(found[0])))
    return max(0.0, max(options)[1])


def separation_bound(present: Scores, absent: Scores, confidence: float) -> float:
    """Lower bound on how many standard deviations two normal distributions are apart.

    It holds for every pair of distributions that is told apart no better than two such
    normal ones. Arguments as of `epsilon_bound`; may be negative.
    """
    from scipy.special import ndtri

    there, away = _halves(present), _halves(absent)
    levels = np.unique(there[0])

    def bound(levels: Scores, guilty: Scores, innocent: Scores) -> Scores:
        often, seldom = _rates(levels, guilty, innocent, confidence)
        apart: Scores = ndtri(often) - ndtri(seldom)
        return np.where((often > 0) & (seldom < 1), apart, -math.inf)

    best = int(np.argmax(bound(levels, there[0], away[0])))
    return float(bound(levels[[best]], there[1], away[1])[0])


def _halves(scores: Scores) -> tuple[Scores, Scores]:
    """One to choose a threshold on, one to test it on."""
    middle = len(scores) // 2
    return scores[:middle], scores[middle:]


def _rates(
    levels: Scores, guilty: Scores, innocent: Scores, confidence: float
) -> tuple[Scores, Scores]:
    """At each level, least rate of true and largest rate of false alarms.

    Each is exact with half of the doubt, so that both hold with the confidence.
    """
    from scipy.stats import beta

    doubt = (1 - confidence) / 2
    true, false = (
        len(scores) - np.searchsorted(np.sort(scores), levels, side="left")
        for scores in (guilty, innocent)
    )
    n, m = len(guilty), len(innocent)
    # Beta's parameters are to be positive: the ends are known.
    least = np.where(true > 0, beta.ppf(doubt, np.maximum(true, 1), n - true + 1), 0.0)
    most = np.where(false < m, beta.ppf(1 - doubt, false + 1, np.maximum(m - false, 1)), 1.0)
    return least, most


def _canary(evidence: Evidence) -> tuple[Truth, Update]:
    """A sample with a wrong label, and its gradient at the weights that were sent."""
    assert evidence.data is not None
    observation, train = evidence.observation, evidence.data.train
    alone = replace(
        observation.facts,
        steps=1,
        batch_size=1,
        examples=1,
        momentum=0.0,
        weight_decay=0.0,
        proximal_mu=0.0,
    )
    mapping = UpdateMap(observation.model, observation.parameters, observation.buffers, alone)
    like = next(iter(observation.parameters.values()))
    rng = stream(evidence.seed, "canary")
    best: tuple[float, Truth, Update] | None = None
    for index in rng.choice(len(train), min(_CANDIDATES, len(train)), replace=False):
        label = (train.labels[[index]] + rng.integers(1, train.classes)) % train.classes
        truth = Truth(train.samples(np.array([index])), label)
        inputs = torch.from_numpy(truth.inputs).to(like.device)
        inputs = inputs if train.vocabulary else inputs.to(like)
        update = mapping(inputs[None], torch.from_numpy(label)[None].to(like.device))
        gradient = {name: value[0].cpu().double() for name, value in update.items()}
        norm = math.sqrt(_product(gradient, gradient))
        if best is None or norm > best[0]:
            best = norm, truth, gradient
    assert best is not None
    return best[1], best[2]


def _product(update: Update, gradient: Update) -> float:
    return float(sum((_flat(update[name]) @ _flat(value)) for name, value in gradient.items()))


def _flat(value: Tensor) -> Tensor:
    return value.cpu().double().flatten()
