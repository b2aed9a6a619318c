"""The capture store: atomic writer, verifying reader, manifest."""

from fedleak.captures.layout import RunLayout, StudyLayout, write_atomic
from fedleak.captures.store import CaptureStore

__all__ = ["CaptureStore", "RunLayout", "StudyLayout", "write_atomic"]
