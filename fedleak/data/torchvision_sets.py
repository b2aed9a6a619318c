"""Data sets of images through torchvision's own classes."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedleak.data.arrays import as_images, as_labels, hold_out
from fedleak.data.image_files import Size, class_column, read_columns, read_images
from fedleak.data.source import Source
from fedleak.errors import Problem, ScenarioError
from fedleak.records import Dataset, DataSplits

_QMNIST_HEADER, _QMNIST_COLUMNS = 12, 8


def opened(name: str, root: Path, *, download: bool, **options: Any) -> Any:
    """torchvision's data set ``name``.

    Raises:
        ScenarioError: Nothing usable lies under ``root``, or the download failed.
    """
    from torchvision import datasets

    try:
        return getattr(datasets, name)(root, download=download, **options)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        if download:
            problem = Problem(
                "data.download", f"fetching {name} into {str(root)!r} failed: {error}"
            )
        else:
            # LFW is not to be fetched any more.
            fetch = "" if name == "LFWPeople" else ", or set download = true to fetch it there"
            problem = Problem(
                "data.root",
                f"no usable {name} under {str(root)!r}. Give the directory that holds "
                f"it in torchvision's layout{fetch}.",
            )
        raise ScenarioError(problem) from error


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
        name = self.torchvision_name
        part = opened(name, self.root, train=train, download=self.download)
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


class Lfw(Source):
    """Labeled Faces in the Wild: 13,233 photos of 5,749 people, from ``root/lfw-py``.

    torchvision has the people, as attribute ``identity``, and their images; it does not fetch
    them any more. Further attributes (gender, age, hair) come from a CSV file, such as one
    made of the table of Kumar et al. 2009, whose ``file`` is ``Name/Name_0001.jpg``. The
    middle 125x94 pixels, the face, are scaled to 62x47, as Mo et al. have it. ``test_fraction``
    of the images is held out as `ImageFolder` does; of a person with one image, either.
    """

    kind: Literal["lfw"] = "lfw"
    root: Path = Field(description="directory that holds lfw-py in torchvision's layout")
    image_set: Literal["original", "funneled", "deepfunneled"] = Field(
        "funneled", description="how faces were aligned"
    )
    attributes: Path | None = Field(
        None, description="CSV file with a column file and one column per attribute"
    )
    label: str = Field("identity", description="attribute to use as class")
    size: Size = Field((62, 47), description="height and width to bring images to, in pixels")
    crop: Size | None = Field(
        (125, 94), description="height and width of the middle of each image that alone is used"
    )
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share of images held out")

    def load(self) -> DataSplits:
        """Read all images as uint8 ``(n, 3, *size)``.

        Raises:
            ScenarioError: Nothing usable lies under ``root``, or an image has no value in a
                column of the attributes file.
        """
        part = opened("LFWPeople", self.root, download=False, image_set=self.image_set)
        folder = Path(part.images_dir)
        files = [Path(path).relative_to(folder).as_posix() for path in part.data]
        columns = {} if self.attributes is None else read_columns(self.attributes, files)
        columns["identity"] = np.array([file.split("/")[0] for file in files])
        names, labels = np.unique(class_column(self.label, columns), return_inverse=True)
        images = read_images(folder, files, self.size, self.crop, "data.root")
        whole = Dataset(images, labels.astype(np.int64), len(names), columns)
        return hold_out(whole, self.test_fraction, "data.root")


class CelebA(Source):
    """CelebA: photos of celebrities with 40 attributes each, from ``root/celeba``.

    Attributes are 0 or 1, under CelebA's own names (``Male``, ``Eyeglasses``), and the number
    of the person, ``identity``. The first ``samples`` of 202,599 aligned images are read, and
    ``test_fraction`` of them is held out as `ImageFolder` does.
    """

    kind: Literal["celeba"] = "celeba"
    root: Path = Field(description="directory that holds celeba in torchvision's layout")
    download: bool = Field(False, description="fetch the set into root where it is absent")
    label: str = Field(description="attribute to use as class, for example Smiling")
    samples: int = Field(15_000, ge=2, le=202_599, description="images to read, from the first on")
    size: Size = Field((64, 64), description="height and width to bring images to, in pixels")
    crop: Size | None = Field(
        None, description="height and width of the middle of each image that alone is used"
    )
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share of images held out")

    def load(self) -> DataSplits:
        """Read the images as uint8 ``(n, 3, *size)``.

        Raises:
            ScenarioError: Nothing usable lies under ``root``, the download failed, or there
                is no such attribute.
        """
        part = opened("CelebA", self.root, download=self.download, split="all")
        files = [str(file) for file in part.filename[: self.samples]]
        table = part.attr[: self.samples].numpy().astype(np.int64)
        # The blank that ends the file's line of names makes one more, which is empty.
        columns = {name: table[:, number] for number, name in enumerate(part.attr_names) if name}
        columns["identity"] = part.identity[: self.samples, 0].numpy().astype(np.int64)
        names, labels = np.unique(class_column(self.label, columns), return_inverse=True)
        folder = Path(part.root) / part.base_folder / "img_align_celeba"
        images = read_images(folder, files, self.size, self.crop, "data.root")
        whole = Dataset(images, labels.astype(np.int64), len(names), columns)
        return hold_out(whole, self.test_fraction, "data.root")
