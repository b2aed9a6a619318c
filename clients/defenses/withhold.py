"""Layers that a client trains and keeps to itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from clients.defenses.defense import Defense, Metrics, Turn, Update
from clients.defenses.protected import no_such_layer, protected
from fedleak.records import Setting, TrainingFacts


class Withhold(Defense):
    """Sends nothing of some layers: they come back as they were sent.

    The global model never learns in them, if all clients withhold the same ones. No privacy
    guarantee comes with it: what the other layers tell, they tell.
    """

    kind: Literal["withhold"] = "withhold"
    holds_back: ClassVar[bool] = True
    layers: tuple[str, ...] = Field(
        min_length=1, description="names of the layers or parameters that are not sent"
    )

    def unsupported(self, setting: Setting) -> str | None:
        return no_such_layer(setting.model, self.layers)

    def note(self, model: nn.Module, facts: Sequence[TrainingFacts]) -> str | None:
        names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        if set(protected(names, self.layers)) < set(names):
            return None
        return "withhold holds back every trained layer: nothing is learnt from the clients."

    def release(self, update: Update, model: nn.Module, turn: Turn) -> tuple[Update, Metrics]:
        nothing = {name: torch.zeros_like(update[name]) for name in protected(update, self.layers)}
        return {**update, **nothing}, {}
