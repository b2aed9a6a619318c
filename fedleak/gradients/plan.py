"""A plan: how candidates of one shape are evaluated together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Batching = Literal["explicit", "vmap", "loop", "checkpoint"]


@dataclass(frozen=True)
class Plan:
    """How to evaluate candidates of one shape.

    Attributes:
        batching: ``explicit``: one pass for all, see `fedleak.gradients.explicit`;
            ``vmap``: `torch.func.vmap`; ``loop``: one by one; ``checkpoint``: one by one,
            each local step computed again when it is differentiated.
        chunk: Candidates at a time, >= 1.
    """

    batching: Batching
    chunk: int
