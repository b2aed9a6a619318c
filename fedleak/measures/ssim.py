"""Structural similarity."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedleak.measures.score import InputScore

_SIGMA, _REACH = 1.5, 5


class SSIM(InputScore):
    """Structural similarity of images, -1..1; 1 is exact.

    Wang, Bovik, Sheikh, Simoncelli 2004: Gaussian window of 11 x 11 pixels with
    standard deviation 1.5, K1 = 0.01, K2 = 0.03, values in 0..1, mean over all pixels
    and channels, the image mirrored at its edges. An image with a side of 5 pixels or
    less cannot be mirrored that far: its window is the largest odd square that can
    (twice the shorter side, less one), with the deviation in proportion; such values
    compare only with those of images of the same size. NaN for samples that are not of
    shape ``(C, H, W)`` or are a single pixel high or wide.
    """

    kind: Literal["ssim"] = "ssim"

    def compare(self, reconstructed: Tensor, original: Tensor) -> Tensor:
        # torchmetrics takes seconds to import.
        from torchmetrics.functional.image import structural_similarity_index_measure

        reach = min(_REACH, min(original.shape[2:], default=1) - 1)
        if original.dim() != 4 or reach < 1:
            return torch.full((len(original),), torch.nan, dtype=original.dtype)
        similarity = structural_similarity_index_measure(
            reconstructed, original, sigma=_SIGMA * reach / _REACH, data_range=1.0, reduction="none"
        )
        assert isinstance(similarity, Tensor)
        # Of a single pair, it comes without its axis.
        return similarity.reshape(len(original))
