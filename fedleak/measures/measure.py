"""What every measure of leakage offers, and what it is given."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from fedleak.components import Applicable
from fedleak.records import DataSplits, Observation, Truth

Release = Callable[[Truth, int], Mapping[str, Tensor]]
"""Takes samples and a seed; gives the update, ``(sent - released) / lr`` by parameter, that
the client would have released in this round had it trained on them: one local step on all of
them, or on none, then its defenses, with their randomness drawn from the seed."""
Progress = Callable[[int, int], None]
"""Told a step of a measure and their total."""


@dataclass(frozen=True)
class Evidence:
    """What a measure computes from.

    An attack is never given this: it holds the truth.

    Attributes:
        observation: What was sent and came back. Of a measure of a whole round, one of the
            round's clients stands for all: what was sent and the training facts count.
        truth: The client's samples; None where nobody knows them.
        data: The federation's samples, with their attributes; None for captures of an app
            that FedLeak knows nothing of.
        release: What the client would release of other samples; None likewise.
        seed: Fixes the measure's random draws.
        progress: Told now and then how far the measure is.
        reported: Numbers that the client reported of the round, by name.
    """

    observation: Observation
    truth: Truth | None
    data: DataSplits | None
    release: Release | None
    seed: int
    progress: Progress = lambda step, total: None
    reported: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Value:
    """One number that a measure gives: a row of the results.

    Attributes:
        metric: Name, ``jacobian-f-norm``: letters, digits and hyphens.
        value: The number; NaN where it is undefined.
        layer: The layer that it is about, ``conv1``, or several, ``conv1+conv2``, in the
            model's order; None for the whole update.
        sample: Index of the true sample that it is about; -1 for all of them.
        low: Lower end of its 95 % interval; NaN where there is none.
        high: Upper end.
    """

    metric: str
    value: float
    layer: str | None = None
    sample: int = -1
    low: float = math.nan
    high: float = math.nan


class Measure(Applicable, ABC):
    """A number per layer or per client, computed with no attack or over many outcomes of one.

    Attributes:
        of: Whether it is about what one client released in a round, or about the model that
            a round's clients were sent. What is of a round is computed once for it.
        needs: What of the evidence must be there.
        metrics: Names of all metrics that its values may have, which expectations can name.
    """

    of: ClassVar[Literal["client", "round"]] = "client"
    needs: ClassVar[frozenset[Literal["truth", "data", "release"]]] = frozenset()
    metrics: ClassVar[tuple[str, ...]]

    @property
    def note(self) -> str | None:
        """A sentence that a reader of the values must know, if there is one."""
        return None

    @abstractmethod
    def measure(self, evidence: Evidence) -> Iterator[Value]:
        """Compute the values.

        Raises:
            MeasureFailed: They are undefined for what was captured; says why.
        """
