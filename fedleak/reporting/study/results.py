"""Reads what a study's aggregation wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from fedleak.captures import StudyLayout
from fedleak.errors import CaptureError, ResourceError
from fedleak.reporting.results import CellStatus, Expectation, Stored, read_json


class Run(Stored):
    """What became of one repeat of a cell."""

    repeat: int
    status: Literal["done", "failed", "missing"]
    reason: str = ""
    seconds: float = 0.0


class StudyTrouble(Stored):
    """Attacks of a cell that did not finish, for one and the same reason."""

    attack: str
    status: CellStatus
    reason: str
    cells: int


class StudyCell(Stored):
    """One setting of the matrix; ``settings`` are words by key path."""

    name: str
    settings: dict[str, str]
    runs: tuple[Run, ...]
    troubles: tuple[StudyTrouble, ...] = ()


class _Summary(Stored):
    name: str
    keys: tuple[str, ...]
    repeats: int
    aggregation: str
    cells: tuple[StudyCell, ...]
    expectations: tuple[Expectation, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Value:
    """One row of ``study.parquet``: a metric of a cell over its repeats.

    ``round`` is None for the whole run, of the global model's metrics after its last round.
    ``sd``, ``low`` and ``high`` are None for a single repeat.
    """

    cell: str
    attack: str | None
    metric: str
    layer: str | None
    round: int | None
    aggregate: str
    repeats: int
    samples: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class StudyResults:
    """A study, finished or not.

    Attributes:
        layout: Where its files lie.
        name: Its name.
        keys: Key paths that the matrix varies.
        repeats: Runs of each cell.
        aggregation: How scores became values, in words.
        cells: In the matrix's order.
        values: The table.
        expectations: Published values, one for each cell that they are about.
        waiting: How many more there are about cells that were not run yet.
        notes: Sentences that a reader of the values must know.
        environment: Versions, machine and command, as recorded.
        scenario: The study's own text.
    """

    layout: StudyLayout
    name: str
    keys: tuple[str, ...]
    repeats: int
    aggregation: str
    cells: tuple[StudyCell, ...]
    values: tuple[Value, ...]
    expectations: tuple[Expectation, ...]
    waiting: int
    notes: tuple[str, ...]
    environment: Mapping[str, Any]
    scenario: str

    def count(self, status: str) -> int:
        """Number of runs with a status."""
        return sum(run.status == status for cell in self.cells for run in cell.runs)

    @cached_property
    def overall(self) -> tuple[Value, ...]:
        """The values over whole runs."""
        return tuple(value for value in self.values if value.round is None)

    @cached_property
    def short_keys(self) -> dict[str, str]:
        """For each key path the shortest end of it that no other key path has."""
        names: dict[str, str] = {}
        for key in self.keys:
            parts = key.split(".")
            ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
            names[key] = next(
                (
                    end
                    for end in ends
                    if not any(f".{k}".endswith(f".{end}") for k in self.keys if k != key)
                ),
                key,
            )
        return names

    def numbers(self, key: str) -> dict[str, float] | None:
        """A key's values by cell, where all of them are numbers."""
        try:
            return {c.name: float(c.settings[key]) for c in self.cells if key in c.settings}
        except ValueError:
            return None


def read_study(directory: Path) -> StudyResults:
    """Read an aggregated study.

    Raises:
        ResourceError: There is no study, or none of it was aggregated yet.
        CaptureError: A file of it is damaged; the message names the file.
    """
    layout = StudyLayout(Path(directory))
    if not layout.exists:
        raise ResourceError(f"{directory} is no study's directory")
    if not layout.summary.is_file() or not layout.table.is_file():
        raise ResourceError(
            f"the study in {directory} has no table yet; `fedleak report {directory}` makes it "
            f"of what there is, `fedleak run {directory}` goes on"
        )
    summary = read_json(layout.summary, TypeAdapter(_Summary))
    unfinished = {
        cell.name for cell in summary.cells if any(run.status == "missing" for run in cell.runs)
    }
    told = tuple(
        e
        for e in summary.expectations
        if e.measured is not None or not unfinished & {*e.cells, e.minus}
    )
    return StudyResults(
        layout=layout,
        values=_read_values(layout.table),
        environment=read_json(layout.environment, TypeAdapter(dict[str, Any]), {}),
        scenario=layout.scenario.read_text(encoding="utf-8"),
        waiting=len(summary.expectations) - len(told),
        **{
            **{name: getattr(summary, name) for name in _Summary.model_fields},
            "expectations": told,
        },
    )


def _read_values(path: Path) -> tuple[Value, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read().select(list(Value.__dataclass_fields__))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise CaptureError(f"{path} is damaged: {error}") from error
    return tuple(Value(**row) for row in table.to_pylist() if not math.isnan(row["mean"]))
