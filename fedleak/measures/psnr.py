"""Peak signal-to-noise ratio."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fedleak.measures.score import InputScore

CEILING = 100.0
"""dB: pixels off by 1e-5 each. What float32 parameters carry tells hardly more."""


class PSNR(InputScore):
    """``-10 log10(MSE)`` in dB for values in 0..1, higher is better.

    An exact reconstruction has no finite ratio. Values above 100 dB, infinity among
    them, count as 100 dB, so that means and tables stay meaningful.
    """

    kind: Literal["psnr"] = "psnr"

    def compare(self, reconstructed: Tensor, original: Tensor) -> Tensor:
        # torchmetrics takes seconds to import.
        from torchmetrics.functional.image import peak_signal_noise_ratio

        ratio = peak_signal_noise_ratio(
            reconstructed.flatten(1), original.flatten(1), data_range=1.0, reduction="none", dim=1
        )
        return ratio.clamp(max=CEILING)
