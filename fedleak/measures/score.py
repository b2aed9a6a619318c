"""What every score offers."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.components import Component
from fedleak.records import Indices, Reconstruction, Truth


class Score(Component):
    """Compares what an attack got with the truth."""


class SampleScore(Score):
    """Compares a reconstruction with the truth, one value for each true sample."""

    @abstractmethod
    def score(self, reconstruction: Reconstruction, truth: Truth, matches: Indices) -> Tensor:
        """Score every true sample against the reconstruction it was matched to.

        Args:
            reconstruction: What an attack made, ``m`` samples.
            truth: What there was, ``b`` samples.
            matches: ``(b,)``, for each true sample the index of its reconstruction or -1
                (see `fedleak.measures.match`).

        Returns:
            ``(b,)`` float64, NaN where there is nothing to compare.
        """


class InputScore(SampleScore):
    """Compares the samples themselves; NaN for a true sample without a match.

    Attributes:
        of_texts: Whether samples are tokens, rather than pixels.
    """

    of_texts: ClassVar[bool] = False

    def score(self, reconstruction: Reconstruction, truth: Truth, matches: Indices) -> Tensor:
        matched = torch.from_numpy(matches >= 0)
        chosen = torch.from_numpy(matches[matches >= 0])
        reconstructed = reconstruction.inputs.detach().cpu().double()[chosen]
        original = torch.from_numpy(truth.inputs).double()[matched]
        values = torch.full((len(matches),), torch.nan, dtype=torch.float64)
        if len(original):
            values[matched] = self.compare(reconstructed, original)
        return values

    @abstractmethod
    def compare(self, reconstructed: Tensor, original: Tensor) -> Tensor:
        """Compare matched pairs, both ``(m, *input)`` float64: ``(m,)`` values.

        Pixels are in [0, 1], tokens whole numbers.
        """
