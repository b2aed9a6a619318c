"""The check that samples are images."""

from __future__ import annotations

from fedleak.records import DataSplits


def not_pixels(
    input_shape: tuple[int, ...], data: DataSplits | None, does: str = "differentiates in pixels"
) -> str | None:
    """Say in one sentence why what a measure ``does`` cannot be done, or return None."""
    if len(input_shape) == 3 and not (data is not None and data.train.vocabulary):
        return None
    return f"{does}, and samples of shape {input_shape} are no images (C, H, W)"
