"""The ledger: one Parquet row per score or measured value."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fedleak.captures.layout import write_atomic
from fedleak.errors import CaptureError

SCHEMA = pa.schema(
    [
        ("cell", pa.string()),
        ("round", pa.int64()),
        ("client", pa.string()),
        ("attack", pa.string()),
        ("sample", pa.int64()),
        ("match", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("layer", pa.string()),
        ("measure", pa.string()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)
"""Columns of ``results.parquet``. ``attack`` names what was scored, or ``measure`` what
measured. ``sample`` is the index of the true sample, -1 for a value of the whole cell;
``match`` the index of its reconstruction, -1 for none; ``low`` to ``high`` a measured value's
95 % interval, where it has one."""

_LATER = {"measure", "low", "high"}
"""Columns that the ledgers of attacks lack that were written before there were measures."""


def read_ledger(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each cell by its name, with all columns; none where nothing was written yet.

    Raises:
        CaptureError: The file is damaged; names it.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    try:
        # `pq.read_table` would import pandas as well.
        table = pq.ParquetFile(path).read()
        table.select([name for name in SCHEMA.names if name not in _LATER])
    except FileNotFoundError:
        return rows
    except (OSError, KeyError, pa.ArrowException) as error:
        raise CaptureError(
            f"{path} is damaged ({error}); remove it and the next audit scores its cells again"
        ) from error
    for row in table.to_pylist():
        rows.setdefault(row["cell"], []).append(dict.fromkeys(_LATER) | row)
    return rows


def write_ledger(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write all rows; replaces the file atomically."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), buffer)
    write_atomic(path, buffer.getvalue())
