"""Top-k sparsification: only the largest entries of the update are sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from flwr.app import Array, ArrayRecord
from pydantic import Field
from torch import nn

from clients.defenses.defense import FLOAT_BYTES, Defense, Metrics, Turn, Update
from clients.defenses.sparsity import Scope, smallest_zeroed
from fedleak.records import TrainingFacts

_INDEX_BYTES = 4


class TopK(Defense):
    """Sends the largest entries of the update only, to save bytes (Aji and Heafield 2017).

    Of ``n`` entries the ``round(fraction * n)`` of greatest magnitude are kept, at least one;
    the others are released as zero. With error feedback a client adds what it left out
    to its next update (Stich et al. 2018), which training needs where the fraction is
    small; sooner or later everything is sent then.

    ``bytes`` is what a sparse message needs: 4 bytes for the float32 of each entry kept
    and 4 for its index, or 4 for every entry where that is less. ``bytes-saved`` is the
    difference to sending every entry. Both count trained parameters only, and suppose that
    no defense after this one changes zeros. No privacy guarantee comes with it.
    """

    kind: Literal["top-k"] = "top-k"
    holds_back: ClassVar[bool] = True
    fraction: float = Field(0.1, gt=0, le=1, description="share of entries that are sent")
    scope: Scope = Field(
        "layer", description="largest within each parameter tensor, or within the whole update"
    )
    error_feedback: bool = Field(
        False, description="whether what was left out is added to the client's next update"
    )

    def note(self, model: nn.Module, facts: Sequence[TrainingFacts]) -> str | None:
        if self.fraction == 1:
            return "top-k with fraction = 1 sends everything: it saves nothing and changes nothing."
        return None

    def release(self, update: Update, model: nn.Module, turn: Turn) -> tuple[Update, Metrics]:
        left = turn.state.array_records.get(turn.label)
        if left is not None:
            update = {n: v + torch.from_numpy(left[n].numpy()) for n, v in update.items()}
        released = smallest_zeroed(update, lambda n: n - self._kept(n), self.scope)
        if self.error_feedback:
            turn.state[turn.label] = ArrayRecord(
                {n: Array((update[n] - released[n]).numpy()) for n in update}
            )
        return released, self._sizes([value.numel() for value in update.values()])

    def _kept(self, entries: int) -> int:
        return max(1, round(self.fraction * entries))

    def _sizes(self, entries: list[int]) -> Metrics:
        plain = FLOAT_BYTES * sum(entries)
        together = entries if self.scope == "layer" else [sum(entries)]
        sparse = sum(
            min(self._kept(n) * (FLOAT_BYTES + _INDEX_BYTES), n * FLOAT_BYTES) for n in together
        )
        return {"bytes": sparse, "bytes-saved": plain - sparse}
