"""Gradient compression: small entries of the update are not sent."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from clients.defenses.defense import Defense, Metrics, Turn, Update
from fedleak.records import TrainingFacts


class GradientPruning(Defense):
    """Zeroes the smallest entries of the update (gradient compression, Zhu et al. 2019).

    Of ``n`` entries the ``round(rate * n)`` of least magnitude are released as zero, so
    the weights behind them come back as they were sent. No privacy guarantee comes with it.
    """

    kind: Literal["gradient-pruning"] = "gradient-pruning"
    rate: float = Field(0.7, ge=0, lt=1, description="share of entries that become zero")
    scope: Literal["layer", "model"] = Field(
        "layer", description="smallest within each parameter tensor, or within the whole update"
    )

    def unsupported(
        self, model: nn.Module, facts: TrainingFacts, input_shape: tuple[int, ...], classes: int
    ) -> str | None:
        return None

    def release(self, update: Update, model: nn.Module, turn: Turn) -> tuple[Update, Metrics]:
        if not self.rate:
            return update, {}
        if self.scope == "layer":
            return {name: self._pruned(value) for name, value in update.items()}, {}
        whole = self._pruned(torch.cat([value.flatten() for value in update.values()]))
        parts = torch.split(whole, [value.numel() for value in update.values()])
        return {
            name: part.view_as(value)
            for (name, value), part in zip(update.items(), parts, strict=True)
        }, {}

    def _pruned(self, values: Tensor) -> Tensor:
        flat = values.flatten()
        count = round(self.rate * len(flat))
        if not count:
            return values
        smallest = np.argpartition(flat.abs().numpy(), count - 1)[:count]
        return flat.index_fill(0, torch.from_numpy(smallest), 0.0).view_as(values)
