"""The capture store: atomic writer, verifying reader, manifest."""

from fedleak.captures.layout import RunLayout, write_atomic
from fedleak.captures.store import CaptureStore

__all__ = ["CaptureStore", "RunLayout", "write_atomic"]
