"""Image files and the CSV file that describes them, for the sources that read them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedleak.errors import Problem, ScenarioError, nearest

Side = Annotated[int, Field(ge=1, le=4096)]
Size = tuple[Side, Side]
Columns = dict[str, npt.NDArray[np.str_]]


def read_images(
    root: Path,
    files: Sequence[str],
    size: Size,
    crop: Size | None,
    path: str,
    channels: int = 3,
) -> npt.NDArray[np.uint8]:
    """Images ``(n, channels, *size)``, scaled and centre-cropped.

    Args:
        root: Directory that ``files`` are relative to.
        files: The image files.
        size: Height and width.
        crop: Height and width of the middle that alone is used, if any.
        path: Scenario key path to blame.
        channels: 3 for RGB, 1 for greyscale.

    Raises:
        ScenarioError: One is no image, or smaller than ``crop``.
    """
    return np.stack([_image(root, file, size, crop, path, channels) for file in files])


def _image(
    root: Path, file: str, size: Size, crop: Size | None, path: str, channels: int
) -> npt.NDArray[np.uint8]:
    from PIL import Image, ImageOps

    height, width = size
    try:
        with Image.open(root / file) as opened:
            image = opened.convert("RGB" if channels == 3 else "L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        message = f"{file!r} cannot be read as an image: {error}. Repair or remove it."
        raise ScenarioError(Problem(path, message)) from error
    if crop is not None:
        if image.height < crop[0] or image.width < crop[1]:
            message = (
                f"{file!r} has {image.height}x{image.width} pixels; there is no middle of "
                f"{crop[0]}x{crop[1]}."
            )
            raise ScenarioError(Problem("data.crop", message))
        top, left = (image.height - crop[0]) // 2, (image.width - crop[1]) // 2
        image = image.crop((left, top, left + crop[1], top + crop[0]))
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(height, width, channels).transpose(2, 0, 1)


def read_columns(table: Path, files: Sequence[str]) -> Columns:
    """The columns of a CSV file, in the order of ``files``.

    Raises:
        ScenarioError: It is no CSV with a column ``file`` and another, or a file has no
            value in a column.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            names = list(reader.fieldnames or ())
            rows = {row.get("file"): row for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = f"{str(table)!r} cannot be read as CSV: {error}."
        raise ScenarioError(Problem("data.attributes", message)) from error
    if "file" not in names or len(names) < 2:
        message = (
            f"{str(table)!r} has columns {', '.join(names) or '(none)'}; it needs "
            "a column 'file' and at least one attribute."
        )
        raise ScenarioError(Problem("data.attributes", message))
    names.remove("file")
    for file in files:
        lacking = [name for name in names if not rows.get(file, {}).get(name)]
        if lacking:
            message = (
                f"{str(table)!r} has no value for file {file!r} in column "
                f"{', '.join(map(repr, lacking))}; complete it or remove the image."
            )
            raise ScenarioError(Problem("data.attributes", message))
    return {name: np.array([rows[file][name] for file in files]) for name in names}


def class_column(
    label: str, columns: Mapping[str, npt.NDArray[np.generic]]
) -> npt.NDArray[np.generic]:
    """The column to take classes from.

    Raises:
        ScenarioError: There is none of that name.
    """
    if label in columns:
        return columns[label]
    message = (
        f"there is no column {label!r} to take classes from, only "
        f"{', '.join(columns) or 'none: set data.attributes'}."
    )
    raise ScenarioError(Problem("data.label", message + nearest(label, columns)))
