"""Mean squared error."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fedleak.measures.score import InputScore


class MSE(InputScore):
    """Mean squared difference over a sample's values, 0..1; 0 is exact."""

    kind: Literal["mse"] = "mse"

    def compare(self, reconstructed: Tensor, original: Tensor) -> Tensor:
        return (reconstructed - original).square().flatten(1).mean(1)
