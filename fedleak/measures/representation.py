"""How much of the representations an update shows (Sun et al., Soteria: CVPR 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedleak.attacks import Representation
from fedleak.attacks.representation import class_representations
from fedleak.attacks.structure import seen_by
from fedleak.errors import AttackFailed, MeasureFailed
from fedleak.measures.intervals import mean_interval
from fedleak.measures.measure import Evidence, Measure, Value
from fedleak.records import Setting


class RepresentationLeakage(Measure):
    """Correlation of inferred with true class representations at each dense layer.

    Sun et al., Sec. 3.2 and Table 1. The representation of a class is the mean of what a
    dense layer is given for the client's samples of it, by the model that was sent. It is
    inferred from the update as the attack `representation` does, with the classes and their
    numbers of samples known; Pearson's correlation is over the layer's features. The value
    is the mean over the client's classes, with its 95 % interval (Student's t). A class whose
    true or inferred representation is constant has none.
    """

    kind: Literal["representation"] = "representation"

    needs: ClassVar[frozenset[Literal["truth", "data", "release"]]] = frozenset({"truth"})
    metrics: ClassVar[tuple[str, ...]] = ("representation-correlation",)

    def unsupported(self, setting: Setting) -> str | None:
        if setting.data is not None and setting.data.train.vocabulary:
            return "is about images; the data are texts"
        return Representation().unsupported(setting)

    def measure(self, evidence: Evidence) -> Iterator[Value]:
        observation, truth = evidence.observation, evidence.truth
        assert truth is not None
        labels, counts = np.unique(truth.labels, return_counts=True)
        try:
            inferred = class_representations(
                observation, torch.from_numpy(labels), torch.from_numpy(counts)
            )
        except AttackFailed as failure:
            raise MeasureFailed(str(failure)) from failure
        tensors = {**observation.buffers, **observation.parameters}
        samples = torch.from_numpy(truth.inputs).double()
        for layer, rows in inferred.items():
            given = seen_by(
                layer, observation.model, tensors, observation.facts.train_mode, samples
            )
            true = torch.stack([given[truth.labels == label].mean(0) for label in labels])
            each = [
                value
                for one, other in zip(rows, true, strict=True)
                if not math.isnan(value := _correlation(one, other))
            ]
            mean, low, high = mean_interval(each, least=-1, most=1) if each else (math.nan,) * 3
            yield Value("representation-correlation", mean, layer, low=low, high=high)


def _correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's; NaN where one of them is constant."""
    return float(torch.corrcoef(torch.stack([one, other.cpu()]))[0, 1])
