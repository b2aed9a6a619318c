"""Differentially private SGD: each sample's gradient clipped, their sum noised."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Self

import torch
from flwr.app import ConfigRecord
from pydantic import Field, model_validator
from torch import Tensor, nn

from clients.defenses.defense import Defense, Metrics, Step, Turn, Update
from fedleak.privacy import KNOWN_SEED, delta_too_large
from fedleak.records import Setting, TrainingFacts

_LARGEST = 1e6
"""Noise multiplier beyond which Opacus looks no further."""
_HOPELESS = 100.0
"""Epsilon that protects nothing, above which privacy loss variables take memory without end."""

History = tuple[tuple[float, float, int], ...]
"""Noise multiplier and sampling rate of steps, and how many were taken with them."""
_COLUMNS = ("noise-multiplier", "sampling-rate", "steps")


class DpSgd(Defense):
    """Local training by DP-SGD (Abadi et al. 2016), with Opacus.

    In each step every sample's gradient is clipped to an l2 norm; their sum, with Gaussian
    noise of ``noise_multiplier * clip`` on each entry, is divided by the expected batch size.
    The guarantee is for single samples: two data sets of a client are neighbours if one has
    a sample more. With ``poisson`` sampling each sample is in each batch with probability
    ``batch_size / samples``, by itself; batches have different sizes, may be empty, and
    their size is not disclosed (facts and attacks go by the expected one). With ``shuffle``
    batches are those of plain training; a sample is then in one batch of each epoch, which
    is accounted for without any amplification by sampling, and holds for neighbours that
    differ in one sample's contribution being left out.

    Epsilon is reported after each round in which the client took part and is that of all of
    them together. It covers what is released of the update, also after defenses that change it
    further; not the loss and the number of samples that a client reports, nor what other
    defenses report. It supposes noise and batches that the server cannot know: runs that
    repeat draw both from the scenario's seed.

    Without clipping and noise training is the plain one bit for bit. Without noise, and
    clipping that clips nothing, it is so up to rounding (of relative 1e-6 in float32): the sum
    of the samples' gradients is taken in another order, and a batch that is smaller than
    expected counts for less.
    """

    kind: Literal["dp-sgd"] = "dp-sgd"
    makes_gradients: ClassVar[bool] = True
    clipping: Literal["flat", "per-layer", "adaptive", "ghost", "none"] = Field(
        "flat",
        description="of a sample's whole gradient; of each parameter's part, all to the same norm; "
        "to a norm that follows a quantile of the norms; flat without ever holding per-sample "
        "gradients (less memory, more time); not at all",
    )
    clip: float = Field(
        1.0, gt=0, le=1e9, description="greatest l2 norm of a sample's gradient, adaptive: at first"
    )
    unclipped: float = Field(
        0.5, gt=0, lt=1, description="adaptive: share of gradients that is to stay unclipped"
    )
    noise_multiplier: float | None = Field(
        None,
        ge=0,
        le=_LARGEST,
        description="standard deviation of the noise over the clip norm; default 1, or what "
        "`epsilon` needs",
    )
    epsilon: float | None = Field(
        None,
        gt=0,
        le=_HOPELESS,
        description="epsilon of a client that takes part in every planned round, from which the "
        "noise follows",
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="delta of epsilon; below 1 / samples")
    accountant: Literal["prv", "rdp"] = Field(
        "prv",
        description="how epsilon composes: privacy loss variables (Gopi et al. 2021; tight; up to "
        "an epsilon of 100), or Rényi divergences (Mironov 2017)",
    )
    sampling: Literal["poisson", "shuffle"] = Field(
        "poisson",
        description="each sample in each batch by itself; or batches of fixed size, with no "
        "amplification by sampling",
    )

    @model_validator(mode="after")
    def _one_source_of_noise(self) -> Self:
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise ValueError("give noise_multiplier or epsilon, not both")
        if self.clipping == "none" and self.noise_multiplier != 0:
            raise ValueError(
                "without clipping no noise gives privacy: set noise_multiplier = 0 or another "
                "clipping"
            )
        return self

    @property
    def poisson(self) -> bool:
        return self.sampling == "poisson"

    def unsupported(self, setting: Setting) -> str | None:
        if self.clipping == "none":
            return None
        facts = setting.facts
        if not facts.train_mode:
            return (
                "Opacus takes per-sample gradients in training mode only; set client.train_mode = "
                "true."
            )
        if self.noise_multiplier != 0:
            said = delta_too_large(self.delta, facts.examples)
            if said is not None:
                return said
        if self.epsilon is not None:
            least = _epsilon(self.accountant, ((_LARGEST, *self._steps(facts, 1)),), self.delta)
            if least > self.epsilon:
                return (
                    f"the {self.accountant} accountant can show no epsilon below {least:.3g} here, "
                    "whatever the noise; give a larger epsilon or another accountant."
                )
        from clients.per_sample import untrainable

        return untrainable(setting.model, setting.input_shape, self.clipping)

    def note(self, model: nn.Module, facts: Sequence[TrainingFacts]) -> str | None:
        if self.noise_multiplier == 0:
            return (
                "dp-sgd gives no differential privacy guarantee: without noise clipping hides "
                "nothing."
            )
        said = [
            "dp-sgd's epsilon is that of one sample of a client, over all rounds in which the "
            "client took part; it does not cover the loss and the number of samples reported. "
            f"{KNOWN_SEED}"
        ]
        if self.poisson:
            said.append("Batches are sampled; attacks take each to be of the expected size.")
            few = min(facts, key=lambda its: its.examples)
            if few.examples < few.batch_size:
                said.append(
                    f"A client that trains on fewer samples than client.batch_size (one has "
                    f"{few.examples} of {few.batch_size}) uses all of them in every step, and "
                    "gains nothing by sampling."
                )
        return " ".join(said)

    @contextmanager
    def training(self, model: nn.Module, turn: Turn) -> Iterator[Step]:
        if self.clipping == "none":
            with super().training(model, turn) as step:
                yield step
            return
        from clients.per_sample import private_gradient

        device = next(model.parameters()).device
        with private_gradient(
            model,
            self.clipping,
            clip=_clip(turn, self.clip),
            noise_multiplier=self._noise(turn),
            expected_batch_size=min(turn.facts.batch_size, turn.facts.examples),
            unclipped=self.unclipped,
            generator=torch.Generator(device).manual_seed(turn.key),
        ) as replace:

            def privately(inputs: Tensor, labels: Tensor) -> Metrics:
                replace(inputs, labels)
                return {}

            yield privately
            if self.clipping == "adaptive":
                turn.state[f"{turn.label}/clip"] = ConfigRecord({"clip": replace.clip})

    def release(self, update: Update, model: nn.Module, turn: Turn) -> tuple[Update, Metrics]:
        noise = self._noise(turn)
        if not noise:
            return update, {}
        history = _merged((*_taken(turn), (noise, *self._steps(turn.facts, 1))))
        columns = (list(column) for column in zip(*history, strict=True))
        turn.state[turn.label] = ConfigRecord(dict(zip(_COLUMNS, columns, strict=True)))
        return update, {
            "epsilon": _epsilon(self.accountant, history, self.delta),
            "delta": self.delta,
            "noise-multiplier": noise,
        }

    def _noise(self, turn: Turn) -> float:
        """Standard deviation of the noise over the clip norm."""
        if self.epsilon is None:
            return 1.0 if self.noise_multiplier is None else self.noise_multiplier
        rate, steps = self._steps(turn.facts, turn.rounds)
        return _noise_for(self.epsilon, self.delta, rate, steps, self.accountant)

    def _steps(self, facts: TrainingFacts, rounds: int) -> tuple[float, int]:
        """Sampling rate and number of the steps that a sample may have been in."""
        if self.poisson:
            return min(1.0, facts.batch_size / facts.examples), facts.steps * rounds
        epoch = math.ceil(facts.examples / facts.batch_size)
        return 1.0, math.ceil(facts.steps / epoch) * rounds


def _merged(history: History) -> History:
    """Steps of the same noise and rate together, whenever they were."""
    count: dict[tuple[float, float], int] = {}
    for noise, rate, steps in history:
        count[noise, rate] = count.get((noise, rate), 0) + steps
    return tuple((noise, rate, steps) for (noise, rate), steps in count.items())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what Opacus's accountants say of numbers that are right all the same."""
    with warnings.catch_warnings():
        # It says where more orders would give a lower epsilon; this one holds as well.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        # At a sampling rate of 1 it takes log(1 - 1) for the least loss there can be: -inf,
        # as is right.
        warnings.filterwarnings(
            "ignore", "divide by zero encountered in log", RuntimeWarning, r"opacus\.accountants\."
        )
        yield


@functools.lru_cache(maxsize=1024)
def _epsilon(accountant: str, history: History, delta: float) -> float:
    from opacus.accountants import PRVAccountant, RDPAccountant

    bound = RDPAccountant()
    bound.history = list(history)
    with _quiet():
        epsilon = float(bound.get_epsilon(delta))
        if accountant == "rdp" or epsilon > _HOPELESS:
            return epsilon
        tight = PRVAccountant()
        tight.history = list(history)
        return float(tight.get_epsilon(delta))


@functools.lru_cache(maxsize=1024)
def _noise_for(epsilon: float, delta: float, rate: float, steps: int, accountant: str) -> float:
    from opacus.accountants.utils import get_noise_multiplier

    with _quiet():
        return float(
            get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                accountant=accountant,
                epsilon_tolerance=min(0.01, epsilon / 100),
            )
        )


def _taken(turn: Turn) -> History:
    """The steps of all rounds in which the client has taken part."""
    record = turn.state.config_records.get(turn.label)
    if record is None:
        return ()
    columns: list[Any] = [record[name] for name in _COLUMNS]
    return tuple(zip(*columns, strict=True))


def _clip(turn: Turn, first: float) -> float:
    """The norm to clip to: the one that adaptive clipping came to in the client's last round."""
    record = turn.state.config_records.get(f"{turn.label}/clip", ConfigRecord({"clip": first}))
    clip = record["clip"]
    assert isinstance(clip, float)
    return clip
