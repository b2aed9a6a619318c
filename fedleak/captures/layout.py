"""Where things lie in a run directory, and how files are put there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fedleak.errors import ResourceError


@dataclass(frozen=True)
class RunLayout:
    """Paths inside one run directory; creates nothing by itself."""

    root: Path

    @property
    def scenario(self) -> Path:
        return self.root / "scenario.toml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def log(self) -> Path:
        return self.root / "run.log"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    def round(self, number: int) -> Path:
        return self.root / "captures" / f"round-{number:04d}"

    @property
    def cells(self) -> Path:
        return self.root / "audit" / "cells"

    def original(self, round: int, client: str) -> Path:
        return self.root / "audit" / "originals" / f"round-{round:04d}.{client}.safetensors"

    @property
    def plans(self) -> Path:
        return self.root / "audit" / "batching.json"

    @property
    def results(self) -> Path:
        return self.root / "audit" / "results.parquet"

    @property
    def expectations(self) -> Path:
        return self.root / "audit" / "expectations.json"


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    The bytes go to a sibling file that is flushed to disk and then renamed over the
    target. Costs one fsync; a crash can leave a ``.partial`` sibling behind, which the
    next write of the same path replaces.

    Raises:
        ResourceError: The directory cannot be written or the disk is full.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror or error}") from error
