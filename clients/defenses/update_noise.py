"""Clipping and noise on the update that a client releases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from flwr.app import ConfigRecord
from pydantic import Field
from torch import nn

from clients.defenses.defense import Defense, Metrics, Turn, Update
from clients.defenses.protected import no_such_layer, protected
from fedleak.privacy import KNOWN_SEED, delta_too_large, gaussian_epsilon
from fedleak.records import Setting, TrainingFacts


class UpdateNoise(Defense):
    """Clips the update to an l2 norm and adds noise to each of its entries.

    Both are in the unit of the gradient: the update is ``(sent - trained) / lr``, the
    sum of the local steps' gradients. Entries of all protected layers are clipped
    together, and what is clipped is the client's whole update, not each sample's part.

    Differential privacy holds where every parameter is protected, the update is clipped,
    noise is added, and no statistics of the data (batch norm's) travel beside it. It is
    that of the client's update as a whole: two updates differ by at most twice the clip
    norm, whatever data they were made from. For Gaussian noise epsilon is exact and
    composes over the rounds in which the client took part (analytic Gaussian mechanism,
    Balle and Wang 2018; T rounds are one of a sensitivity that is sqrt(T) times as
    large). For Laplace noise it is pure: ``2 clip sqrt(d) / scale`` a round for ``d``
    entries, which is large, because an l1 norm follows from an l2 norm by no less than
    sqrt(d). It does not cover the loss and the number of samples that a client reports, and
    supposes noise that the server cannot know: runs that repeat draw it from the
    scenario's seed.
    """

    kind: Literal["update-noise"] = "update-noise"
    repeatable: ClassVar[bool] = True
    clip: float | None = Field(
        None, gt=0, le=1e9, description="greatest l2 norm of the update; default no clipping"
    )
    scale: float = Field(
        0.0,
        ge=0,
        le=1e9,
        description="of the noise: standard deviation (gaussian), or the b of "
        "exp(-|x| / b) (laplace)",
    )
    distribution: Literal["gaussian", "laplace"] = Field(
        "gaussian", description="what the noise is drawn from"
    )
    layers: tuple[str, ...] | None = Field(
        None, min_length=1, description="names of the layers or parameters to protect; default all"
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="delta at which epsilon is reported")

    def unsupported(self, setting: Setting) -> str | None:
        if (missing := no_such_layer(setting.model, self.layers or ())) is not None:
            return missing
        if self.distribution == "gaussian" and self._lacking(setting.model) is None:
            return delta_too_large(self.delta, setting.facts.examples)
        return None

    def note(self, model: nn.Module, facts: Sequence[TrainingFacts]) -> str | None:
        lacking = self._lacking(model)
        if lacking is not None:
            return f"update-noise gives no differential privacy guarantee: {lacking}."
        entries = sum(weight.numel() for weight in model.parameters())
        delta = f", {self.delta:g}" if self.distribution == "gaussian" else ""
        return (
            f"update-noise makes one update of a client ({self._epsilon(1, entries):.4g}{delta})-"
            f"differentially private; epsilon of all its rounds is among its metrics. {KNOWN_SEED}"
        )

    def release(self, update: Update, model: nn.Module, turn: Turn) -> tuple[Update, Metrics]:
        names = protected(update, self.layers)
        norm = _norm(update, names)
        released = dict(update)
        if self.clip is not None and norm > self.clip:
            released |= {name: update[name] * (self.clip / norm) for name in names}
        if self.scale:
            rng = turn.rng
            draw = rng.normal if self.distribution == "gaussian" else rng.laplace
            for name in names:
                noise = torch.from_numpy(draw(0.0, self.scale, tuple(update[name].shape)))
                released[name] = released[name] + noise
        # Of what is released: anything else said of the data would void the guarantee.
        metrics = {"norm": _norm(released, names)}
        if self._lacking(model) is None:
            metrics["epsilon"] = self._epsilon(
                self._count_round(turn), sum(update[name].numel() for name in names)
            )
        return released, metrics

    def _lacking(self, model: nn.Module) -> str | None:
        """What stands in the way of a guarantee."""
        if self.clip is None:
            return "without `clip` one update may differ from another by any amount"
        if not self.scale:
            return "without noise (`scale`) clipping hides nothing"
        names = [name for name, _ in model.named_parameters()]
        open_ = sorted(set(names) - set(protected(names, self.layers)), key=names.index)
        if open_:
            return f"{open_[0]!r} and perhaps others are released without its noise"
        if buffers := [name for name, _ in model.named_buffers()]:
            return f"{buffers[0]!r} is computed from the data and released without noise"
        return None

    def _count_round(self, turn: Turn) -> int:
        """Rounds in which the client released an update, this one included."""
        said = turn.state.config_records.get(turn.label, ConfigRecord({"rounds": 0}))["rounds"]
        assert isinstance(said, int)
        turn.state[turn.label] = ConfigRecord({"rounds": said + 1})
        return said + 1

    def _epsilon(self, rounds: int, entries: int) -> float:
        assert self.clip is not None
        if self.distribution == "laplace":
            return rounds * 2 * self.clip * math.sqrt(entries) / self.scale
        return gaussian_epsilon(math.sqrt(rounds) * 2 * self.clip / self.scale, self.delta)


def _norm(update: Update, names: list[str]) -> float:
    return math.sqrt(sum(float(update[name].square().sum()) for name in names))
