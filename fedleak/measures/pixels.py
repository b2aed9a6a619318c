"""The check that samples are images."""

from __future__ import annotations

from fedleak.records import DataSplits


def not_pixels(input_shape: tuple[int, ...], data: DataSplits | None) -> str | None:
    """Say in one sentence why a derivative in the pixels does not exist, or return None."""
    if len(input_shape) == 3 and not (data is not None and data.train.vocabulary):
        return None
    return f"differentiates in pixels, and samples of shape {input_shape} are no images (C, H, W)"
