"""What every data source is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from fedleak.components import Component
from fedleak.records import DataSplits


class Source(Component, ABC):
    """A data source: its fields say where the samples are, `load` reads them."""

    @abstractmethod
    def load(self) -> DataSplits:
        """Read all samples into memory.

        Returns:
            Training and test samples, images as ``(n, C, H, W)``; the same source
            gives the same samples in the same order every time.

        Raises:
            ScenarioError: The samples cannot be read or are not what they must be.
        """
