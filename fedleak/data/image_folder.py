"""A directory of image files, labelled by folder or by a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedleak.data.arrays import hold_out
from fedleak.data.source import Source
from fedleak.errors import Problem, ScenarioError, nearest
from fedleak.records import Dataset, DataSplits

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
Side = Annotated[int, Field(ge=1, le=4096)]


class ImageFolder(Source):
    """Image files in torchvision's ``path/class/.../file.jpg`` layout, or flat with a CSV.

    The class is the first folder below ``path``, or, with ``label``, the value of that
    column of the ``attributes`` file; classes are numbered in sorted order of their
    names. Every image is scaled and centre-cropped to ``size``. ``test_fraction`` of the
    images is held out, evenly over the classes and with no random draw (see `hold_out`).
    """

    kind: Literal["image-folder"] = "image-folder"
    path: Path = Field(description="directory with the images, searched through its folders")
    size: tuple[Side, Side] = Field(description="height and width to bring images to, in pixels")
    channels: Literal[1, 3] = Field(3, description="3 for RGB, 1 for greyscale")
    attributes: Path | None = Field(
        None,
        description="CSV file with a column file (relative to path) and one column per attribute",
    )
    label: str | None = Field(
        None, description="column of the attributes file to use as class, in place of the folder"
    )
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share of images held out")

    def load(self) -> DataSplits:
        """Read all images as uint8 ``(n, channels, *size)``.

        Raises:
            ScenarioError: No directory, no images, no classes, an unreadable image, or
                an image with no value in a column of the attributes file.
        """
        files = self._files()
        columns = self._columns(files)
        names = self._class_names(files, columns)
        classes, labels = np.unique(names, return_inverse=True)
        images = np.stack([self._image(file) for file in files])
        whole = Dataset(images, labels.astype(np.int64), len(classes), columns)
        return hold_out(whole, self.test_fraction, "data.path")

    def _files(self) -> list[str]:
        """Image files below ``path``, as sorted relative POSIX paths."""
        if not self.path.is_dir():
            message = f"there is no directory {str(self.path)!r}; give the one with the images."
            raise ScenarioError(Problem("data.path", message))
        files = sorted(
            file.relative_to(self.path).as_posix()
            for file in self.path.rglob("*")
            if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        if not files:
            message = (
                f"no images below {str(self.path)!r} (looked for {', '.join(sorted(SUFFIXES))})."
            )
            raise ScenarioError(Problem("data.path", message))
        return files

    def _columns(self, files: list[str]) -> dict[str, npt.NDArray[np.str_]]:
        """The attribute columns, in the order of ``files``."""
        if self.attributes is None:
            return {}
        try:
            with self.attributes.open(newline="", encoding="utf-8-sig") as stream:
                reader = csv.DictReader(stream)
                names = list(reader.fieldnames or ())
                rows = {row.get("file"): row for row in reader}
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            message = f"{str(self.attributes)!r} cannot be read as CSV: {error}."
            raise ScenarioError(Problem("data.attributes", message)) from error
        if "file" not in names or len(names) < 2:
            message = (
                f"{str(self.attributes)!r} has columns {', '.join(names) or '(none)'}; it needs "
                "a column 'file' and at least one attribute."
            )
            raise ScenarioError(Problem("data.attributes", message))
        names.remove("file")
        for file in files:
            lacking = [name for name in names if not rows.get(file, {}).get(name)]
            if lacking:
                message = (
                    f"{str(self.attributes)!r} has no value for file {file!r} in column "
                    f"{', '.join(map(repr, lacking))}; complete it or remove the image."
                )
                raise ScenarioError(Problem("data.attributes", message))
        return {name: np.array([rows[file][name] for file in files]) for name in names}

    def _class_names(
        self, files: list[str], columns: dict[str, npt.NDArray[np.str_]]
    ) -> npt.NDArray[np.str_]:
        if self.label is not None:
            if self.label in columns:
                return columns[self.label]
            message = (
                f"there is no column {self.label!r} to take classes from, only "
                f"{', '.join(columns) or 'none: set data.attributes'}."
            )
            raise ScenarioError(Problem("data.label", message + nearest(self.label, columns)))
        for file in files:
            if "/" not in file:
                message = (
                    f"{file!r} lies directly in {str(self.path)!r}, so it has no class. Put every "
                    "image into a folder named after its class, or name a column of a CSV file: "
                    "data.attributes and data.label."
                )
                raise ScenarioError(Problem("data.path", message))
        return np.array([file.split("/", 1)[0] for file in files])

    def _image(self, file: str) -> npt.NDArray[np.uint8]:
        """One image ``(channels, *size)``."""
        from PIL import Image, ImageOps

        height, width = self.size
        try:
            with Image.open(self.path / file) as opened:
                image = opened.convert("RGB" if self.channels == 3 else "L")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            message = f"{file!r} cannot be read as an image: {error}. Repair or remove it."
            raise ScenarioError(Problem("data.path", message)) from error
        fitted = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return np.asarray(fitted).reshape(height, width, self.channels).transpose(2, 0, 1)
