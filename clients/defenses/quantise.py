"""Quantisation: entries of the update are sent with few bits."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from clients.defenses.defense import FLOAT_BYTES, Defense, Metrics, Turn, Update


class Quantise(Defense):
    """Rounds the update to a few levels, evenly spaced within each tensor, to save bytes.

    The levels are ``-L..L`` times ``max |value| / L`` with ``L = 2^(bits - 1) - 1``, so that
    zero stays zero. Stochastic rounding goes to one of the two levels around a value, with
    probabilities that make its expectation the value (QSGD, Alistarh et al. 2017, with the
    largest magnitude for its norm; with 2 bits TernGrad, Wen et al. 2017); nearest rounding
    is deterministic and biased.

    ``bytes`` is what a message needs: ``bits`` for each entry, each tensor padded to whole
    bytes, and 4 bytes for its step. ``bytes-saved`` is the difference to sending every
    entry as float32. Both count trained parameters only, and suppose that no defense after
    this one leaves the levels. No privacy guarantee comes with it.
    """

    kind: Literal["quantise"] = "quantise"
    bits: int = Field(8, ge=2, le=16, description="bits for each entry, the sign among them")
    rounding: Literal["stochastic", "nearest"] = Field(
        "stochastic", description="to one of both levels around at random, or to the nearest"
    )

    def release(self, update: Update, model: nn.Module, turn: Turn) -> tuple[Update, Metrics]:
        rng = turn.rng
        released = {name: self._rounded(value, rng) for name, value in update.items()}
        entries = [value.numel() for value in update.values()]
        needed = sum(math.ceil(n * self.bits / 8) + FLOAT_BYTES for n in entries)
        return released, {"bytes": needed, "bytes-saved": FLOAT_BYTES * sum(entries) - needed}

    def _rounded(self, values: Tensor, rng: np.random.Generator) -> Tensor:
        levels: int = 2 ** (self.bits - 1) - 1
        step = float(values.abs().max()) / levels
        if not step:
            return values
        # From the level below, what is added decides whether it is the one above.
        added = rng.random(tuple(values.shape)) if self.rounding == "stochastic" else 0.5
        # Rounding errors must not lead past the last level.
        level = (values / step + torch.as_tensor(added)).floor().clamp(-levels, levels)
        return level * step
