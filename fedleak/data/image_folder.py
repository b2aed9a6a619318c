"""A directory of image files, labelled by folder or by a CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedleak.data.arrays import hold_out
from fedleak.data.image_files import Columns, Size, class_column, read_columns, read_images
from fedleak.data.source import Source
from fedleak.errors import Problem, ScenarioError
from fedleak.records import Dataset, DataSplits

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})


class ImageFolder(Source):
    """Image files in torchvision's ``path/class/.../file.jpg`` layout, or flat with a CSV.

    The class is the first folder below ``path``, or, with ``label``, the value of that
    column of the ``attributes`` file; classes are numbered in sorted order of their
    names. Every image is scaled and centre-cropped to ``size``, and before that cropped to its
    middle where ``crop`` is given. ``test_fraction`` of the images is held out, evenly over
    the classes and with no random draw (see `hold_out`).
    """

    kind: Literal["image-folder"] = "image-folder"
    path: Path = Field(description="directory with the images, searched through its folders")
    size: Size = Field(description="height and width to bring images to, in pixels")
    crop: Size | None = Field(
        None,
        description="height and width of the middle of each image that alone is used, in its own "
        "pixels; all of it if not given",
    )
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
        columns = {} if self.attributes is None else read_columns(self.attributes, files)
        names = self._class_names(files, columns)
        classes, labels = np.unique(names, return_inverse=True)
        images = read_images(
            self.path, files, self.size, self.crop, "data.path", channels=self.channels
        )
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

    def _class_names(self, files: list[str], columns: Columns) -> npt.NDArray[np.generic]:
        if self.label is not None:
            return class_column(self.label, columns)
        for file in files:
            if "/" not in file:
                message = (
                    f"{file!r} lies directly in {str(self.path)!r}, so it has no class. Put every "
                    "image into a folder named after its class, or name a column of a CSV file: "
                    "data.attributes and data.label."
                )
                raise ScenarioError(Problem("data.path", message))
        return np.array([file.split("/", 1)[0] for file in files])
