"""A directory of image files, labelled by their paths or by a CSV file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field

from fedleak.data.arrays import hold_out
from fedleak.data.image_files import Columns, Size, class_column, read_columns, read_images
from fedleak.data.source import Source
from fedleak.errors import Problem, ScenarioError
from fedleak.records import Dataset, DataSplits

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})


def _with_a_group(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    if not groups:
        raise ValueError(f"{pattern!r} has no group (...) for the class")
    return pattern


class ImageFolder(Source):
    """Image files whose paths, or a CSV, say which class they are of.

    The class is what ``pattern`` finds in a file's path; its default is torchvision's
    layout ``path/class/.../file.jpg``. With ``label`` it is the value of that column of
    the ``attributes`` file. Classes are numbered in sorted order of their names. Every
    image is scaled and centre-cropped to ``size``, and before that cropped to its middle
    where ``crop`` is given. ``test_fraction`` of the images is held out, evenly over the
    classes and with no random draw (see `hold_out`).
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
    pattern: Annotated[str, AfterValidator(_with_a_group)] = Field(
        "([^/]+)/",
        description="regular expression whose first group is the class, matched from the "
        "beginning of a file's path below `path`; (n[0-9]+)_ for n01440764_tench.JPEG",
    )
    attributes: Path | None = Field(
        None,
        description="CSV file with a column file (relative to path) and one column per attribute",
    )
    label: str | None = Field(
        None, description="column of the attributes file to use as class, in place of the path"
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
        found = [re.match(self.pattern, file) for file in files]
        for file, match in zip(files, found, strict=True):
            if match is None or not match[1]:
                message = (
                    f"{self.pattern!r} finds no class in {file!r}. Put every image into a folder "
                    "named after its class, give the pattern that finds it in a file's name, or "
                    "name a column of a CSV file: data.attributes and data.label."
                )
                raise ScenarioError(Problem("data.pattern", message))
        return np.array([match[1] for match in found if match])
