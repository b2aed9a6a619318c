"""Usable original information: what gradients tell of the samples (Mo et al., Eq. 4, 6)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedleak.attacks import ATTACKS, DLG, GS, IDLG
from fedleak.attacks.optimisation import LabelFirstAttack, OptimisationAttack
from fedleak.components import OneOf
from fedleak.measures.intervals import share_interval
from fedleak.measures.layers import layers_of
from fedleak.measures.matching import match
from fedleak.measures.measure import Evidence, Measure, Value
from fedleak.measures.pixels import not_pixels
from fedleak.measures.ssim import SSIM
from fedleak.records import Observation, Reconstruction, Setting, Truth
from fedleak.seeding import derive

FAMILY = tuple(attack for attack in ATTACKS if issubclass(attack, OptimisationAttack))
"""Attacks that begin at random and can be told which parameters to look at."""

TAUS = tuple(range(5, 85, 5))
"""Thresholds of the SSIM, in hundredths."""

_GUESSES = 10
"""Random images of each kind behind the prior, for each restart."""

_AT_A_TIME = 100
"""Images compared at a time."""

_ERROR = 0.05
"""How often intervals may miss."""

Similarities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Shares:
    """How often the threshold was reached, of each of ``b`` samples.

    Attributes:
        value: Successes over trials, ``(b,)``.
        low: Lower ends of 95 % intervals, likewise.
        high: Upper ends.
        least: Lower ends that hold for all shares of one comparison at once.
        most: Upper ends, likewise.
    """

    value: Similarities
    low: Similarities
    high: Similarities
    least: Similarities
    most: Similarities

    @classmethod
    def of(cls, similarities: Similarities, tau: float, together: int) -> _Shares:
        """Count ``(R, b)`` similarities; ``together`` shares are compared at once."""
        reached = (similarities >= tau).sum(0)
        trials = len(similarities)
        ends = np.array([share_interval(int(k), trials) for k in reached])
        wide = np.array([share_interval(int(k), trials, 1 - _ERROR / together) for k in reached])
        return cls(reached / trials, *ends.T, *wide.T)


class UsableOriginal(Measure):
    """Bits that sets of layers tell of the samples, by attacks and how often they succeed.

    Mo et al. (arXiv:2105.13929v3), Eq. 4 and 6. Every attack of the family starts ``restarts``
    times; ``f[g]`` is the share of its starts that reach an SSIM of tau, each scored against
    the truth and none chosen by it. ``f[0]`` is the same of random images, ``10 R`` of each
    kind that attacks start from (uniform, normal and grey pixels): of the kind that does best.
    A value is the mean over the client's samples of ``log2 f[g] - log2 f[0]``:
    ``usable-original-50`` of the attack with the greatest mean at tau = .50, or 0 where to
    guess is as good; ``usable-original-50-idlg`` of one attack alone. Of two entries of the
    same kind the better one counts.

    A share of nothing has no logarithm. The rule: no share counts as less than ``1 / (2 R)``,
    half of what R restarts can tell from nothing. So information ends at ``log2 2 R``, and
    is 0 where neither attack nor guess ever reached tau.

    Rows ``reconstructed-50-idlg`` are the shares, one per sample, each with its exact binomial
    95 % interval (Clopper and Pearson 1934); ``guessed-50`` are those of the prior. The
    intervals of information follow from such intervals of all shares that it depends on, each
    made wide enough (Bonferroni) for all to hold at once in 95 % of cases.

    Sets are those of ``consecutive`` layers next to each other, named by them, and the whole
    update. An attack looks at their parameters' update alone; where it needs labels, it is
    given them: most sets do not hold the layer that they are read from. Restarts that fail
    have reached nothing.
    """

    kind: Literal["usable-original"] = "usable-original"
    attacks: tuple[Annotated[OptimisationAttack, OneOf(FAMILY)], ...] = Field(
        (DLG(), IDLG(), GS()),
        min_length=1,
        description="the family: attacks with their parameters; restarts and layers are set here",
    )
    restarts: int = Field(20, ge=1, le=4096, description="starts R of each attack")
    consecutive: int = Field(2, ge=1, le=1000, description="layers of a set")

    needs: ClassVar[frozenset[Literal["truth", "data", "release"]]] = frozenset({"truth"})
    metrics: ClassVar[tuple[str, ...]] = tuple(
        metric
        for tau in TAUS
        for metric in (
            f"usable-original-{tau:02d}",
            f"guessed-{tau:02d}",
            *(f"usable-original-{tau:02d}-{attack.kind_name()}" for attack in FAMILY),
            *(f"reconstructed-{tau:02d}-{attack.kind_name()}" for attack in FAMILY),
        )
    )

    @model_validator(mode="after")
    def _set_here(self) -> Self:
        for attack in self.attacks:
            for name in ("restarts", "layers"):
                if getattr(attack, name) != type(attack).model_fields[name].default:
                    raise ValueError(f"its attacks take no {name}: that is the measure's own")
        return self

    @property
    def note(self) -> str | None:
        low, high = share_interval(self.restarts // 2, self.restarts)
        if high - low <= 0.5:
            return None
        return (
            f"usable-original: with restarts = {self.restarts} the 95 % interval of a share is up "
            f"to {high - low:.2f} wide, too wide to tell thresholds apart (17 restarts make it "
            f"0.50), and there are at most {math.log2(2 * self.restarts):.3g} bits."
        )

    def unsupported(self, setting: Setting) -> str | None:
        if reason := not_pixels(setting, "compares images by their SSIM"):
            return reason
        for attack in self.attacks:
            reason = self._restricted(attack, None).unsupported(setting)
            if reason is not None:
                return f"{attack.kind!r} {reason}"
        layers = layers_of(n for n, p in setting.model.named_parameters() if p.requires_grad)
        if len(layers) < self.consecutive:
            return f"the model has {len(layers)} layers with parameters, not {self.consecutive}"
        return None

    def measure(self, evidence: Evidence) -> Iterator[Value]:
        truth = evidence.truth
        assert truth is not None
        labels = torch.from_numpy(np.sort(truth.labels))
        like = next(iter(evidence.observation.parameters.values()))
        observation = replace(evidence.observation, labels=labels.to(like.device))
        # The shares of one comparison: each attack's and the prior's, of each sample.
        together = len(truth.labels) * (len(self.attacks) + 1)
        priors = self._priors(truth, evidence.seed, together)
        sets = self._sets(observation)
        for number, (name, parameters) in enumerate(sets):
            reached = []
            for index, attack in enumerate(self.attacks):
                evidence.progress(number * len(self.attacks) + index, len(sets) * len(self.attacks))
                restricted = self._restricted(attack, parameters)
                purpose = f"usable-original/{name}/{index}"
                seeds = [derive(evidence.seed, purpose, r) for r in range(self.restarts)]
                reached.append(_outcomes(restricted, observation, truth, seeds))
            values = [
                value
                for tau, prior in priors.items()
                for value in self._values(
                    tau, [_Shares.of(each, tau / 100, together) for each in reached], prior, name
                )
            ]
            # What it all comes to is told first.
            yield from sorted(
                values, key=lambda v: (not v.metric.startswith(self.kind), v.metric.count("-"))
            )
        for tau, prior in priors.items():
            yield from _rows(f"guessed-{tau:02d}", prior, None)

    def _values(
        self, tau: int, shares: Sequence[_Shares], prior: _Shares, layer: str | None
    ) -> Iterator[Value]:
        floor = 1 / (2 * self.restarts)
        # To guess is in the family too ("optional ignorance", Xu et al. 2020).
        best = (0.0, 0.0, 0.0)
        for kind in dict.fromkeys(attack.kind for attack in self.attacks):
            found = [
                (_information(share, prior, floor), share)
                for attack, share in zip(self.attacks, shares, strict=True)
                if attack.kind == kind
            ]
            (value, low, high), share = max(found, key=lambda entry: entry[0][0])
            yield from _rows(f"reconstructed-{tau:02d}-{kind}", share, layer)
            yield Value(f"usable-original-{tau:02d}-{kind}", value, layer, low=low, high=high)
            # The greatest of several lies between the greatest of their ends.
            high = max(info[2] for info, _ in found)
            low = max(info[1] for info, _ in found)
            best = max(best[0], value), max(best[1], low), max(best[2], high)
        value, low, high = best
        yield Value(f"usable-original-{tau:02d}", value, layer, low=low, high=high)

    def _restricted(
        self, attack: OptimisationAttack, parameters: tuple[str, ...] | None
    ) -> OptimisationAttack:
        """One start of an attack on some parameters' update."""
        changes: dict[str, object] = {"restarts": 1, "layers": parameters}
        if isinstance(attack, LabelFirstAttack):
            changes["labels"] = "known"
        return attack.model_copy(update=changes)

    def _sets(
        self, observation: Observation
    ) -> list[tuple[str, tuple[str, ...]] | tuple[None, None]]:
        """Consecutive layers, by name, with their parameters, and the whole update."""
        frozen = {n for n, p in observation.model.named_parameters() if not p.requires_grad}
        layers = layers_of(name for name in observation.parameters if name not in frozen)
        names = list(layers)
        windows = [
            names[start : start + self.consecutive]
            for start in range(len(names) - self.consecutive + 1)
        ]
        sets: list[tuple[str, tuple[str, ...]] | tuple[None, None]] = [
            ("+".join(window), tuple(p for layer in window for p in layers[layer]))
            for window in windows
        ]
        return [*sets, (None, None)]

    def _priors(self, truth: Truth, seed: int, together: int) -> dict[int, _Shares]:
        """What random images reach, by threshold."""
        generator = torch.Generator().manual_seed(derive(seed, "usable-original/guesses"))
        shape = (_GUESSES * self.restarts, *truth.inputs.shape)
        kinds = [
            torch.rand(shape, generator=generator),
            0.5 + 0.25 * torch.randn(shape, generator=generator),
            0.5 + 0.01 * torch.randn(shape, generator=generator),
        ]
        reached = [_similarities(images.clamp(0, 1), truth) for images in kinds]
        floor = 1 / (2 * self.restarts)
        priors = {}
        for tau in TAUS:
            guesses = [_Shares.of(each, tau / 100, together) for each in reached]
            priors[tau] = max(
                guesses, key=lambda g: float(np.log(np.maximum(g.value, floor)).mean())
            )
        return priors


def _outcomes(
    attack: OptimisationAttack, observation: Observation, truth: Truth, seeds: Sequence[int]
) -> Similarities:
    """SSIM of every restart with every true sample, ``(R, b)``; NaN where it failed.

    Each restart is an outcome of its own; together they are one batched computation.
    """
    similarities = np.full((len(seeds), len(truth.labels)), math.nan)
    for made in attack.reconstruct_each([observation] * len(seeds), seeds):
        images = {
            i: result.inputs for i, result in made.items() if isinstance(result, Reconstruction)
        }
        if images:
            similarities[list(images)] = _similarities(torch.stack(list(images.values())), truth)
    return similarities


def _similarities(images: Tensor, truth: Truth) -> Similarities:
    """SSIM of true samples with those matched to them, ``(R, m, C, H, W)`` to ``(R, b)``."""
    images = images.cpu().double()
    original = torch.from_numpy(truth.inputs).double()
    similarities = np.full((len(images), len(original)), math.nan)
    for start in range(0, len(images), _AT_A_TIME):
        some = images[start : start + _AT_A_TIME]
        matches = np.stack(
            [match(Reconstruction(each, None, torch.zeros(len(each))), truth) for each in some]
        )
        rows, samples = np.nonzero(matches >= 0)
        found = SSIM().compare(some[rows, matches[rows, samples]], original[samples])
        similarities[start + rows, samples] = found.numpy()
    return similarities


def _information(share: _Shares, prior: _Shares, floor: float) -> tuple[float, float, float]:
    """Mean of ``log2 f[g] - log2 f[0]`` over samples, and the ends of its interval."""

    def bits(attack: Similarities, guess: Similarities) -> float:
        ratio = np.log2(np.maximum(attack, floor)) - np.log2(np.maximum(guess, floor))
        return float(ratio.mean())

    return (
        bits(share.value, prior.value),
        bits(share.least, prior.most),
        bits(share.most, prior.least),
    )


def _rows(metric: str, shares: _Shares, layer: str | None) -> Iterator[Value]:
    for sample, (value, low, high) in enumerate(
        zip(shares.value, shares.low, shares.high, strict=True)
    ):
        yield Value(metric, float(value), layer, sample, float(low), float(high))
