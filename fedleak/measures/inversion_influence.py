"""The inversion influence function I²F (Zhang et al., NeurIPS 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedleak.attacks.embedding import behind_embedding
from fedleak.errors import MeasureFailed
from fedleak.gradients import Curvature, Update, UpdateMap
from fedleak.measures.intervals import mean_interval
from fedleak.measures.measure import Evidence, Measure, Value
from fedleak.measures.pixels import not_pixels
from fedleak.records import Setting
from fedleak.seeding import derive

_DENSE = 1024
"""Up to so many values of a sample, the curvature is formed and factorised."""


class InversionInfluence(Measure):
    """How far noise in an update moves what a perfect attacker reconstructs.

    Zhang et al., Understanding Deep Gradient Leakage via Inversion Influence Functions. With
    ``J`` the derivative of the update in a sample, samples first, noise ``delta`` moves the
    reconstruction by ``I2F = ||(JJ')^-1 J delta||`` to first order, and by no less than
    ``||J delta|| / lambda_max(JJ')``. Both are Euclidean norms over the sample's values in
    [0, 1]. A sample is taken with the client's others known to the attacker, the worst case.

    A text's values are those of its embedded tokens, ``(length, dimension)``, and the update is
    that of the layers behind the embedding: the embedding's own names the tokens of a text
    without any inversion.

    Noise is what the client's defenses did to the update, with the rounding on the wire: the
    update that came back minus that which its samples give. Where ``sigma`` is given, it is
    Gaussian noise of that deviation on every entry instead, drawn once per sample; then the
    expected values are given too, as root mean squares over all noise.

    ``JJ'`` is used in float64. Up to 1024 values it is formed and factorised, and the
    expectation is exact; above, conjugate gradients need its products alone, and the
    expectation is that of ``draws`` draws, with its interval. A damping is added to its
    eigenvalues, without which directions that leave no trace in the update would make any
    noise an infinite error. Means over samples have 95 % intervals (Student's t).
    """

    kind: Literal["inversion-influence"] = "inversion-influence"
    sigma: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="deviation of given Gaussian noise; without it, the noise really added",
    )
    exact: bool = Field(
        True, description="I2F itself, which takes minutes of large inputs, besides its lower bound"
    )
    damping: float = Field(
        1e-8, gt=0, lt=1, description="damping, as a part of the largest eigenvalue"
    )
    cg_steps: int = Field(
        10_000, ge=1, le=1_000_000, description="steps of conjugate gradients, at most"
    )
    draws: int = Field(
        8, ge=2, le=10_000, description="draws behind an expectation that is not exact"
    )
    samples: int = Field(
        8, ge=1, le=1_000_000, description="samples of a client that are measured, its first ones"
    )

    needs: ClassVar[frozenset[Literal["truth", "data", "release"]]] = frozenset({"truth"})
    metrics: ClassVar[tuple[str, ...]] = (
        "i2f",
        "i2f-bound",
        "i2f-expected",
        "i2f-bound-expected",
    )

    @property
    def note(self) -> str | None:
        if self.sigma is not None:
            return None
        return (
            "i2f is of the noise that clients really added. Without a defense that adds any, it "
            "is of the rounding of what travels, and tells nothing of the model; sigma gives noise."
        )

    def unsupported(self, setting: Setting) -> str | None:
        if behind_embedding(setting.model, setting.input_shape) is None:
            return not_pixels(setting)
        if setting.facts.steps > 1:
            return "differentiates in embedded tokens, whose embedding several local steps change"
        return None

    def measure(self, evidence: Evidence) -> Iterator[Value]:
        observation, truth = evidence.observation, evidence.truth
        assert truth is not None
        device = next(iter(observation.parameters.values())).device
        inputs = torch.from_numpy(truth.inputs).to(device)
        behind = behind_embedding(observation.model, observation.input_shape)
        if behind is not None:
            inputs = functional.embedding(inputs, observation.parameters[behind.weight])
            observation = behind.observation(observation)
        inputs = inputs.double()
        parameters, buffers, released = (
            {name: _double(value) for name, value in tensors.items()}
            for tensors in (observation.parameters, observation.buffers, observation.update)
        )
        mapping = UpdateMap(observation.model, parameters, buffers, observation.facts)
        labels = torch.from_numpy(truth.labels).to(device)
        count = min(self.samples, len(inputs))
        found: dict[str, list[float]] = {}
        for sample in range(count):
            # Conjugate gradients may take minutes, and most often far fewer steps than allowed.
            def on_step(step: int, before: int = sample * self.cg_steps) -> None:
                evidence.progress(before + step, count * self.cg_steps)

            on_step(0)
            curvature = Curvature(mapping, inputs, labels, slice(sample, sample + 1))
            seed = derive(evidence.seed, f"inversion-influence-{sample}")
            inverse = _Inverse(curvature, self, seed, on_step)
            for value in self._of_sample(curvature, inverse, released, sample, seed):
                found.setdefault(value.metric, []).append(value.value)
                yield value
        for metric, values in found.items():
            mean, low, high = mean_interval(values, least=0)
            yield Value(metric, mean, low=low, high=high)

    def _of_sample(
        self,
        curvature: Curvature,
        inverse: _Inverse,
        released: Update,
        sample: int,
        seed: int,
    ) -> Iterator[Value]:
        if self.sigma is None:
            noise = {name: released[name] - value for name, value in curvature.update.items()}
            pulled = curvature.pull(noise)
        else:
            pulled, *others = _gaussian(curvature, self.sigma, self.draws, seed)
        yield Value("i2f-bound", float(pulled.norm()) / inverse.largest, sample=sample)
        if self.exact:
            yield Value("i2f", inverse.influence(pulled), sample=sample)
        if self.sigma is None:
            return
        if inverse.eigenvalues is not None:
            bound = self.sigma * math.sqrt(float(inverse.eigenvalues.sum())) / inverse.largest
            yield Value("i2f-bound-expected", bound, sample=sample)
            if self.exact:
                parts = inverse.eigenvalues / (inverse.eigenvalues + inverse.damping).square()
                yield Value(
                    "i2f-expected", self.sigma * math.sqrt(float(parts.sum())), sample=sample
                )
            return
        draws = [pulled, *others]
        bounds = [float(one.norm()) / inverse.largest for one in draws]
        yield _root_mean_square("i2f-bound-expected", bounds, sample)
        if self.exact:
            exact = [inverse.influence(one) for one in draws]
            yield _root_mean_square("i2f-expected", exact, sample)


class _Inverse:
    """``(JJ')^-1``, from a factorisation where there is one.

    Attributes:
        largest: The largest eigenvalue of ``JJ'``.
        damping: What is added to the eigenvalues.
        eigenvalues: All of them, ``(n,)``; None where they are not known.
    """

    def __init__(
        self,
        curvature: Curvature,
        options: InversionInfluence,
        seed: int,
        on_step: Callable[[int], None],
    ) -> None:
        self._curvature = curvature
        self._on_step = on_step
        self._steps = options.cg_steps
        self.eigenvalues: Tensor | None = None
        if options.exact and curvature.size <= _DENSE:
            found, self._vectors = torch.linalg.eigh(curvature.dense())
            self.eigenvalues = found.clamp(min=0)
            self.largest = float(found[-1])
        else:
            self.largest = curvature.largest(seed)
        if not self.largest > 0:
            raise MeasureFailed("the update does not depend on the sample at all")
        self.damping = options.damping * self.largest

    def influence(self, pulled: Tensor) -> float:
        """``||(JJ' + damping)^-1 v||``.

        Raises:
            MeasureFailed: Conjugate gradients do not get there.
        """
        if self.eigenvalues is not None:
            return float((self._vectors.T @ pulled / (self.eigenvalues + self.damping)).norm())
        solution = self._curvature.solve(pulled, self.damping, self._steps, self._on_step)
        if solution is None:
            raise MeasureFailed(
                f"{self._steps} steps of conjugate gradients do not solve for I2F; raise "
                "cg_steps or damping, or set exact = false for the lower bound alone"
            )
        return float(solution.norm())


def _gaussian(curvature: Curvature, sigma: float, draws: int, seed: int) -> Iterator[Tensor]:
    """Of Gaussian noise in every entry of the update, what is left in the sample's values."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield curvature.pull(
            {
                name: sigma
                * torch.randn(value.shape, generator=generator, dtype=value.dtype).to(value)
                for name, value in curvature.update.items()
            }
        )


def _root_mean_square(metric: str, values: list[float], sample: int) -> Value:
    """With the 95 % interval over the draws."""
    ends = mean_interval([value**2 for value in values], least=0)
    mean, low, high = map(math.sqrt, ends)
    return Value(metric, mean, sample=sample, low=low, high=high)


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value
