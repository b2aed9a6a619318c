"""How much of a batch gradient rows give away: the metrics of Boenisch et al., §8.1."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedleak.measures.score import Score
from fedleak.records import Reconstruction, Truth

EXACT = 1 / 510
"""Largest difference of any value at which two samples are the same: half a step of 8 bits.

The paper asks for an error of zero. Parameters travel as float32, and what is rounded
there is not zero, but rounding it to 8 bits gives the very picture.
"""


@dataclass(frozen=True)
class Extraction:
    """What the gradient rows of one dense layer give, and what an attack made of them.

    Attributes:
        neurons: Neurons of the layer, ``N``.
        active: Those that at least one sample activates.
        exact: Those whose rescaled row is one of the samples, ``G0``.
        samples: Samples in the batch, ``B``.
        recovered: Samples that are among the attack's reconstructions, ``B0``.
    """

    neurons: int
    active: int
    exact: int
    samples: int
    recovered: int


def extraction(
    rows: Tensor, alone: Tensor, neurons: int, reconstruction: Reconstruction, truth: Truth
) -> Extraction:
    """Count rows and samples that are the same (`EXACT`).

    Args:
        rows: ``(n, *shape)``, the rescaled gradient rows of the active neurons. Of texts
            they are embeddings: the tokens nearest to a mixture of two texts may well be
            those of one of them, and the row is a mixture all the same.
        alone: ``(b, *shape)``, what a row shows of each sample alone: the batch itself; of
            texts, their embeddings.
        neurons: Neurons of the layer.
        reconstruction: What the attack returned.
        truth: The batch.
    """
    samples = torch.from_numpy(truth.inputs)
    return Extraction(
        neurons=neurons,
        active=len(rows),
        exact=int(_among(rows, alone).sum()),
        samples=len(samples),
        recovered=int(_among(samples, reconstruction.inputs).sum()),
    )


def _among(some: Tensor, others: Tensor) -> Tensor:
    """Which of the ``(n, *shape)`` are among the ``(m, *shape)``: ``(n,)`` bool."""
    some, others = (x.detach().cpu().double().flatten(1) for x in (some, others))
    if not len(others):
        return torch.zeros(len(some), dtype=torch.bool)
    nearest = torch.cdist(some, others).argmin(1)
    return (some - others[nearest]).abs().amax(1) <= EXACT


class ExtractionScore(Score):
    """One number for all gradient rows of a layer."""

    @abstractmethod
    def value(self, counts: Extraction) -> float:
        """The score, 0..1."""


class ActiveNeurons(ExtractionScore):
    """Share of neurons that at least one sample of the batch activates (A)."""

    kind: Literal["active-neurons"] = "active-neurons"

    def value(self, counts: Extraction) -> float:
        return counts.active / counts.neurons


class ExtractionPrecisionActive(ExtractionScore):
    """Share of active neurons whose row is a sample: P as Boenisch's tables print it.

    0 where no neuron is active.
    """

    kind: Literal["extraction-precision-active"] = "extraction-precision-active"

    def value(self, counts: Extraction) -> float:
        return counts.exact / max(1, counts.active)


class ExtractionPrecision(ExtractionScore):
    """Share of all neurons whose row is a sample (Boenisch et al., Eq. 9)."""

    kind: Literal["extraction-precision"] = "extraction-precision"

    def value(self, counts: Extraction) -> float:
        return counts.exact / counts.neurons


class ExtractionRecall(ExtractionScore):
    """Share of samples that were extracted exactly (Boenisch et al., Eq. 10)."""

    kind: Literal["extraction-recall"] = "extraction-recall"

    def value(self, counts: Extraction) -> float:
        return counts.recovered / counts.samples


EXTRACTION_SCORES: tuple[type[ExtractionScore], ...] = (
    ActiveNeurons,
    ExtractionPrecisionActive,
    ExtractionPrecision,
    ExtractionRecall,
)
