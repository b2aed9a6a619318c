"""A user's arrays in one ``.npz`` file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedleak.data.arrays import as_images, as_labels, checked, count_classes, hold_out
from fedleak.data.source import Source
from fedleak.errors import Problem, ScenarioError, nearest
from fedleak.records import Dataset, DataSplits


class Npz(Source):
    """Images and labels from the arrays of a ``.npz`` file.

    Images are uint8 or floats in [0, 1], laid out as `as_images` says: ``(n, H, W)``,
    ``(n, C, H, W)`` or ``(n, H, W, C)``. Labels are integers from 0; the largest one
    says how many classes there are. Where the file has no test arrays, ``test_fraction``
    of its samples is held out, evenly over the classes and with no random draw
    (see `hold_out`). An attribute ``a`` lies in arrays ``a_train`` and ``a_test``, or in
    one array ``a`` where the file has no test arrays.
    """

    kind: Literal["npz"] = "npz"
    path: Path = Field(description="the .npz file")
    x_train: str = Field("x_train", description="array with the training images")
    y_train: str = Field("y_train", description="array with the training labels")
    x_test: str = Field("x_test", description="array with the test images")
    y_test: str = Field("y_test", description="array with the test labels")
    attributes: tuple[str, ...] = Field(
        (), description="further arrays with one value per sample, for example a writer id"
    )
    test_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of samples held out where the file has no test arrays",
    )

    def load(self) -> DataSplits:
        """Read and check the arrays.

        Raises:
            ScenarioError: The file or an array in it is missing, damaged or not images
                and labels that fit each other.
        """
        arrays = self._read()
        labels = {
            key: as_labels(arrays[key], "data.path", key)
            for key in (self.y_train, self.y_test)
            if key in arrays
        }
        classes = count_classes(*labels.values())

        def dataset(x: str, y: str, suffix: str) -> Dataset:
            images = as_images(arrays[x], "data.path", x)
            columns = {name: arrays[name + suffix] for name in self.attributes}
            return Dataset(images, labels[y], classes, columns)

        if self.x_test in arrays:
            train = dataset(self.x_train, self.y_train, "_train")
            test = dataset(self.x_test, self.y_test, "_test")
            return checked(DataSplits(train, test), "data.path")
        whole = dataset(self.x_train, self.y_train, "")
        return hold_out(whole, self.test_fraction, "data.path")

    def _read(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays this source uses, by their names in the file."""
        try:
            file = np.load(self.path, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array; save several with numpy.savez")
            with file:
                return {key: file[key] for key in self._keys(file.files)}
        except FileNotFoundError:
            message = f"there is no file {str(self.path)!r}; give the .npz file with the arrays."
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            message = f"{str(self.path)!r} cannot be read as .npz: {error}."
        raise ScenarioError(Problem("data.path", message))

    def _keys(self, present: list[str]) -> list[str]:
        fields = {"x_train": self.x_train, "y_train": self.y_train}
        # Test arrays may be absent, but only under their usual names: one that was
        # named in the scenario, or one without the other, is a mistake.
        usual = (self.x_test, self.y_test) == ("x_test", "y_test")
        suffixes = [""]
        if not usual or "x_test" in present or "y_test" in present:
            fields |= {"x_test": self.x_test, "y_test": self.y_test}
            suffixes = ["_train", "_test"]
        wanted = [(field, key) for field, key in fields.items()]
        wanted += [("attributes", name + suffix) for name in self.attributes for suffix in suffixes]
        missing = [
            Problem(
                f"data.{field}",
                f"{str(self.path)!r} has no array {key!r}, only {', '.join(present)}."
                + nearest(key, present),
            )
            for field, key in wanted
            if key not in present
        ]
        if missing:
            raise ScenarioError(missing)
        return [key for _, key in wanted]
