"""Gradient compression: small entries of the update are not sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from clients.defenses.defense import Defense, Metrics, Turn, Update
from clients.defenses.protected import no_such_layer, protected
from clients.defenses.sparsity import Scope, smallest_zeroed
from fedleak.records import Setting, TrainingFacts


class GradientPruning(Defense):
    """Zeroes the smallest entries of the update (gradient compression, Zhu et al. 2019).

    Of ``n`` entries the ``round(rate * n)`` of least magnitude are released as zero, so
    the weights behind them come back as they were sent. No privacy guarantee comes with it.
    """

    kind: Literal["gradient-pruning"] = "gradient-pruning"
    holds_back: ClassVar[bool] = True
    repeatable: ClassVar[bool] = True
    rate: float = Field(0.7, ge=0, lt=1, description="share of entries that become zero")
    scope: Scope = Field(
        "layer", description="smallest within each parameter tensor, or within the whole update"
    )
    layers: tuple[str, ...] | None = Field(
        None, min_length=1, description="names of the layers or parameters to prune; default all"
    )

    def unsupported(self, setting: Setting) -> str | None:
        return no_such_layer(setting.model, self.layers or ())

    def note(self, model: nn.Module, facts: Sequence[TrainingFacts]) -> str | None:
        return None if self.rate else "gradient-pruning with rate = 0 changes nothing."

    def release(self, update: Update, model: nn.Module, turn: Turn) -> tuple[Update, Metrics]:
        chosen = {name: update[name] for name in protected(update, self.layers)}
        pruned = smallest_zeroed(chosen, lambda n: round(self.rate * n), self.scope)
        return {**update, **pruned}, {}
