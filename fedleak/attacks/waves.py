"""Images in units in which all their waves are about equally large."""

from __future__ import annotations

import torch
from torch import Tensor

_FALL = 0.5
"""Power of the frequency by which the units of an image's waves fall."""


class Waves:
    """A change of variables for searches: each cosine wave times how large nature has it.

    Amplitudes of natural images fall with their frequency (Field, J. Opt. Soc. Am. A 4,
    1987). A search whose steps are measured in such units finds what is large in an image
    first, and what an update says little about stays smooth. Samples of less than two
    dimensions have no waves and are left alone.
    """

    def __init__(self, inputs: Tensor) -> None:
        """Prepare for images like ``(R, b, ..., H, W)``."""
        self._flat = inputs.dim() < 4
        if self._flat:
            return
        height, width = inputs.shape[-2:]
        self._down, self._across = (_cosines(size).to(inputs) for size in (height, width))
        rows, columns = (torch.arange(size, dtype=torch.float64) / size for size in (height, width))
        frequencies = (rows.square()[:, None] + columns.square()).sqrt().to(inputs)
        # The mean of an image is as large as its longest wave.
        self._units = (frequencies * max(height, width)).clamp(min=1) ** -_FALL

    def pixels(self, variables: Tensor) -> Tensor:
        """The images that variables of the same shape stand for; symmetric, so its own adjoint."""
        return variables if self._flat else self._times(variables, self._units)

    def variables(self, pixels: Tensor) -> Tensor:
        """The inverse of `pixels`."""
        return pixels if self._flat else self._times(pixels, 1 / self._units)

    def _times(self, images: Tensor, units: Tensor) -> Tensor:
        waves = self._down @ images @ self._across.T * units
        return self._down.T @ waves @ self._across


def _cosines(size: int) -> Tensor:
    """The orthonormal cosine basis ``(size, size)``, one wave a row (DCT-II)."""
    count = torch.arange(size, dtype=torch.float64)
    waves: Tensor = (torch.pi / size * count[:, None] * (count + 0.5)).cos() * (2 / size) ** 0.5
    waves[0] /= 2**0.5
    return waves
