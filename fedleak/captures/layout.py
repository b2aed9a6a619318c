"""Where things lie in a run directory, and how files are put there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fedleak.errors import ResourceError
from fedleak.records import file_name


@dataclass(frozen=True)
class _Layout:
    """Paths inside a directory that a scenario file led to; creates nothing by itself."""

    root: Path

    @property
    def scenario(self) -> Path:
        return self.root / "scenario.toml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"


@dataclass(frozen=True)
class RunLayout(_Layout):
    """Paths inside one run directory."""

    @property
    def log(self) -> Path:
        return self.root / "run.log"

    @property
    def participants(self) -> Path:
        return self.root / "participants.json"

    @property
    def ended(self) -> Path:
        return self.root / "ended.json"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def captures(self) -> Path:
        return self.root / "captures"

    def round(self, number: int) -> Path:
        return self.captures / f"round-{number:04d}"

    @property
    def cells(self) -> Path:
        return self.root / "audit" / "cells"

    def original(self, round: int, client: str) -> Path:
        name = f"round-{round:04d}.{file_name(client)}.safetensors"
        return self.root / "audit" / "originals" / name

    @property
    def plans(self) -> Path:
        return self.root / "audit" / "batching.json"

    @property
    def vocabulary(self) -> Path:
        return self.root / "audit" / "vocabulary.json"

    @property
    def results(self) -> Path:
        return self.root / "audit" / "results.parquet"

    @property
    def expectations(self) -> Path:
        return self.root / "audit" / "expectations.json"

    @property
    def notes(self) -> Path:
        return self.root / "audit" / "notes.json"


@dataclass(frozen=True)
class StudyLayout(_Layout):
    """Paths inside the directory of a study."""

    @property
    def cells(self) -> Path:
        return self.root / "cells"

    def run(self, cell: str, repeat: int) -> Path:
        """The run directory of one repeat of a cell."""
        return self.cells / cell / f"repeat-{repeat}"

    def outcome(self, cell: str, repeat: int) -> Path:
        """What became of the run; a finished file is a finished run."""
        return self.cells / cell / f"repeat-{repeat}.json"

    @property
    def table(self) -> Path:
        return self.root / "study.parquet"

    @property
    def summary(self) -> Path:
        return self.root / "study.json"

    @property
    def exists(self) -> bool:
        """Whether a study was started here."""
        return self.scenario.is_file() and self.cells.is_dir()


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
