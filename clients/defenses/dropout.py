"""Dropout: local training leaves out some inputs of dense layers, at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clients.defenses.defense import Defense, Step, Turn
from fedleak.errors import nearest
from fedleak.models import DROPOUT_NOTE
from fedleak.records import Setting, TrainingFacts


class Dropout(Defense):
    """Trains with dropout before dense layers (Srivastava et al. 2014; Mo et al.'s study).

    In each local step every input of a named layer is zero with probability ``rate``, else
    divided by ``1 - rate``. The model that travels has no dropout layer: parameters are the
    same, and the server's test runs without. Masks come from the client's and round's
    stream. They hide which inputs an update is of, but a mask can be searched for
    together with the sample (Scheliga et al. 2022): no privacy guarantee comes with it.
    """

    kind: Literal["dropout"] = "dropout"
    draws_masks: ClassVar[bool] = True
    rate: float = Field(0.5, ge=0, lt=1, description="probability with which an input is left out")
    layers: tuple[str, ...] | None = Field(
        None, min_length=1, description="names of the dense layers to drop inputs of; default all"
    )

    def unsupported(self, setting: Setting) -> str | None:
        dense = _dense(setting.model)
        if not dense:
            return "it drops inputs of dense layers; this model has none"
        for layer in self.layers or ():
            if layer not in dense:
                return (
                    f"no dense layer {layer!r}; there are: {', '.join(dense)}."
                    f"{nearest(layer, dense)}"
                )
        return None

    def note(self, model: nn.Module, facts: Sequence[TrainingFacts]) -> str | None:
        return DROPOUT_NOTE if self.rate else "dropout with rate = 0 changes nothing."

    @contextmanager
    def training(self, model: nn.Module, turn: Turn) -> Iterator[Step]:
        # Drawn on the CPU: the same masks on every device.
        rng = torch.Generator().manual_seed(turn.key)

        def drop(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            values: Tensor = inputs[0]
            kept = torch.rand(values.shape, generator=rng) >= self.rate
            return (values * (kept / (1 - self.rate)).to(values), *inputs[1:])

        with ExitStack() as stack, super().training(model, turn) as step:
            for name, layer in _dense(model).items():
                if self.layers is None or name in self.layers:
                    stack.callback(layer.register_forward_pre_hook(drop).remove)
            yield step


def _dense(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
