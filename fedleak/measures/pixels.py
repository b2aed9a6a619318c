"""The check that samples are images."""

from __future__ import annotations

from fedleak.records import Setting


def not_pixels(setting: Setting, does: str = "differentiates in pixels") -> str | None:
    """Say in one sentence why what a measure ``does`` cannot be done, or return None."""
    shape, data = setting.input_shape, setting.data
    if len(shape) == 3 and not (data is not None and data.train.vocabulary):
        return None
    return f"{does}, and samples of shape {shape} are no images (C, H, W)"
