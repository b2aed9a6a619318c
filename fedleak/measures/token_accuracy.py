"""Token accuracy."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from fedleak.measures.score import InputScore


class TokenAccuracy(InputScore):
    """Share of a text's tokens that are the true ones, each at its place, padding included.

    NaN for a true text without a match.
    """

    kind: Literal["token-accuracy"] = "token-accuracy"
    of_texts: ClassVar[bool] = True

    def compare(self, reconstructed: Tensor, original: Tensor) -> Tensor:
        return (reconstructed == original).double().mean(1)
