"""Label accuracy."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedleak.measures.score import SampleScore
from fedleak.records import Indices, Reconstruction, Truth


class LabelAccuracy(SampleScore):
    """1 where the reconstructed label is the true one, else 0.

    A true sample without a match counts as 0. NaN throughout where the attack says
    nothing about labels.
    """

    kind: Literal["label-accuracy"] = "label-accuracy"

    def score(self, reconstruction: Reconstruction, truth: Truth, matches: Indices) -> Tensor:
        if reconstruction.labels is None:
            return torch.full((len(matches),), torch.nan, dtype=torch.float64)
        if len(reconstruction.labels) == 0:
            return torch.zeros(len(matches), dtype=torch.float64)
        # The index -1 reads some label; `matched` takes it out again.
        matched = torch.from_numpy(matches >= 0)
        labels = reconstruction.labels.cpu()[torch.from_numpy(matches)]
        return (matched & (labels == torch.from_numpy(truth.labels))).double()
