"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 through torchvision's own classes."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fedleak.data.arrays import as_images, as_labels
from fedleak.data.source import Source
from fedleak.errors import Problem, ScenarioError
from fedleak.records import Dataset, DataSplits

_QMNIST_HEADER, _QMNIST_COLUMNS = 12, 8


class TorchvisionSet(Source):
    """A data set that torchvision reads and can fetch.

    Each subclass names its class in ``torchvision.datasets`` and its class count; the
    split into training and test samples is the published one.
    """

    torchvision_name: ClassVar[str]
    classes: ClassVar[int]

    root: Path = Field(description="directory that holds the set in torchvision's layout")
    download: bool = Field(False, description="fetch the set into root where it is absent")

    def load(self) -> DataSplits:
        """Read both parts.

        Raises:
            ScenarioError: Nothing usable lies under ``root``, or the download failed.
        """
        return DataSplits(train=self._part(train=True), test=self._part(train=False))

    def _part(self, train: bool) -> Dataset:
        from torchvision import datasets

        name = self.torchvision_name
        try:
            part = getattr(datasets, name)(self.root, train=train, download=self.download)
        except (RuntimeError, OSError, ValueError, AssertionError) as error:
            if self.download:
                problem = Problem(
                    "data.download", f"fetching {name} into {str(self.root)!r} failed: {error}"
                )
            else:
                problem = Problem(
                    "data.root",
                    f"no usable {name} under {str(self.root)!r}. Give the directory that holds "
                    "it in torchvision's layout, or set download = true to fetch it there.",
                )
            raise ScenarioError(problem) from error
        return Dataset(
            inputs=as_images(np.asarray(part.data), "data.root", f"{name} images"),
            labels=as_labels(np.asarray(part.targets), "data.root", f"{name} labels"),
            classes=self.classes,
        )


class Mnist(TorchvisionSet):
    """MNIST: 60,000 + 10,000 digits, 1x28x28, read from ``root/MNIST/raw``.

    With QMNIST's label files it is known who wrote each digit (Yadav and Bottou 2019):
    the attributes ``writer``, a number, and ``series``, the NIST series, 0 to 3 for
    census employees and 4 for students.
    """

    torchvision_name = "MNIST"
    classes = 10
    kind: Literal["mnist"] = "mnist"
    writers: Path | None = Field(
        None, description="directory of qmnist-train- and qmnist-test-labels-idx2-int.gz"
    )

    def load(self) -> DataSplits:
        splits = super().load()
        if self.writers is None:
            return splits
        return DataSplits(
            train=_with_writers(splits.train, self.writers / "qmnist-train-labels-idx2-int.gz"),
            test=_with_writers(splits.test, self.writers / "qmnist-test-labels-idx2-int.gz"),
        )


def _with_writers(dataset: Dataset, path: Path) -> Dataset:
    """Add what QMNIST says of each digit; of the test set it knows 60,000, MNIST's first.

    Raises:
        ScenarioError: The file is missing, damaged or of other digits.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
        rows = np.frombuffer(content, ">i4", offset=_QMNIST_HEADER).reshape(-1, _QMNIST_COLUMNS)
    except FileNotFoundError:
        raise ScenarioError(Problem("data.writers", f"there is no file {str(path)!r}.")) from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ScenarioError(
            Problem("data.writers", f"{str(path)!r} cannot be read: {error}.")
        ) from error
    rows = rows[: len(dataset)].astype(np.int64)
    label, series, writer = rows[:, 0], rows[:, 1], rows[:, 2]
    if not np.array_equal(label, dataset.labels):
        message = f"{str(path)!r} is not about these {len(dataset)} digits: the classes differ."
        raise ScenarioError(Problem("data.writers", message))
    return replace(dataset, attributes={"writer": writer, "series": series})


class FashionMnist(TorchvisionSet):
    """Fashion-MNIST: 60,000 + 10,000 garments, 1x28x28, from ``root/FashionMNIST/raw``."""

    torchvision_name = "FashionMNIST"
    classes = 10
    kind: Literal["fashion-mnist"] = "fashion-mnist"


class Cifar10(TorchvisionSet):
    """CIFAR-10: 50,000 + 10,000 photos, 3x32x32, from ``root/cifar-10-batches-py``."""

    torchvision_name = "CIFAR10"
    classes = 10
    kind: Literal["cifar10"] = "cifar10"


class Cifar100(TorchvisionSet):
    """CIFAR-100: 50,000 + 10,000 photos, 3x32x32, from ``root/cifar-100-python``."""

    torchvision_name = "CIFAR100"
    classes = 100
    kind: Literal["cifar100"] = "cifar100"
