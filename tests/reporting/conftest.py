"""A builder of run directories in the stored format, one file at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from fedleak.captures.ledger import SCHEMA

Array = npt.NDArray[Any]


class RunBuilder:
    """Collects a run's parts; `write` puts them on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rounds: dict[str, dict[str, Any]] = {}
        self.rows: list[dict[str, Any]] = []
        self.expectations: list[dict[str, Any]] | None = None
        self.environment: dict[str, Any] = {
            "fedleak": "0.1.0",
            "python": "3.11.9",
            "machine": {"cores": 2},
            "started": "2026-11-20T10:00:00+00:00",
        }
        self.notes: list[str] = []
        self.scenario: str | None = 'name = "tiny"\nseed = 1\n'
        (root / "audit" / "cells").mkdir(parents=True)
        (root / "audit" / "originals").mkdir()

    def round(
        self,
        number: int,
        clients: Sequence[str],
        *,
        absent: Sequence[str] = (),
        rejected: Mapping[str, str] | None = None,
        refused: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        entry = {"file": "f", "sha256": "0", "bytes": 1, "facts": facts}
        self.rounds[str(number)] = {
            "committed": "2026-11-20T10:00:01+00:00",
            "clients": dict.fromkeys(clients, entry),
            "absent": list(absent),
            "rejected": dict(rejected or {}),
            "refused": dict(refused or {}),
            "metrics": dict(metrics or {}),
        }

    def originals(self, number: int, client: str, inputs: Array, labels: Sequence[int]) -> None:
        path = self.root / "audit" / "originals" / f"round-{number:04d}.{client}.safetensors"
        save_file(
            {"inputs": inputs.astype(np.float32), "labels": np.array(labels, np.int64)}, str(path)
        )

    def cell(
        self,
        number: int,
        client: str,
        attack: str,
        *,
        status: str = "done",
        reason: str = "",
        inputs: Array | None = None,
        labels: Sequence[int] | None = None,
        confidence: Sequence[float] | None = None,
        scores: Sequence[Mapping[str, float]] = (),
        matches: Sequence[int] | None = None,
    ) -> str:
        """Add a cell. ``scores[i]`` holds the metrics of true sample ``i``."""
        name = f"round-{number:04d}.{client}.{attack}"
        cells = self.root / "audit" / "cells"
        record = {
            "cell": name,
            "round": number,
            "client": client,
            "attack": attack,
            "parameters": {"steps": 300},
            "status": status,
            "reason": reason,
            "seconds": 3.14,
            "samples": len(scores),
        }
        (cells / f"{name}.json").write_text(json.dumps(record))
        if inputs is not None:
            arrays = {"inputs": np.ascontiguousarray(inputs, np.float32)}
            if labels is not None:
                arrays["labels"] = np.array(labels, np.int64)
            chosen = confidence if confidence is not None else [0.5] * len(inputs)
            arrays["confidence"] = np.array(chosen, np.float32)
            save_file(arrays, str(cells / f"{name}.safetensors"))
        for sample, values in enumerate(scores):
            match = matches[sample] if matches is not None else sample
            for metric, value in values.items():
                self.score(name, sample, metric, value, match)
        return name

    def score(
        self,
        cell: str,
        sample: int,
        metric: str,
        value: float,
        match: int,
        layer: str | None = None,
    ) -> None:
        number, client, attack = cell.split(".", 2)
        self.rows.append(
            {
                "cell": cell,
                "round": int(number.removeprefix("round-")),
                "client": client,
                "attack": attack,
                "sample": sample,
                "match": match,
                "metric": metric,
                "value": value,
                "layer": layer,
            }
        )

    def measure(
        self, number: int, client: str, measure: str, *, status: str = "done", reason: str = ""
    ) -> str:
        """Add the cell of a measure."""
        name = f"round-{number:04d}.{client}.{measure}"
        record = {
            "cell": name,
            "round": number,
            "client": client,
            "attack": None,
            "measure": measure,
            "parameters": {},
            "status": status,
            "reason": reason,
            "seconds": 1.0,
            "samples": 1,
        }
        (self.root / "audit" / "cells" / f"{name}.json").write_text(json.dumps(record))
        return name

    def value(
        self,
        cell: str,
        metric: str,
        value: float,
        layer: str | None = None,
        *,
        sample: int = -1,
        low: float = math.nan,
        high: float = math.nan,
    ) -> None:
        """Add what a measure gave."""
        number, client, measure = cell.split(".", 2)
        self.rows.append(
            {
                "cell": cell,
                "round": int(number.removeprefix("round-")),
                "client": client,
                "measure": measure,
                "sample": sample,
                "match": -1,
                "metric": metric,
                "value": value,
                "layer": layer,
                "low": low,
                "high": high,
            }
        )

    def write(self) -> Path:
        manifest = {"format": 1, "rounds": self.rounds}
        (self.root / "manifest.json").write_text(json.dumps(manifest))
        (self.root / "environment.json").write_text(json.dumps(self.environment))
        if self.scenario is not None:
            (self.root / "scenario.toml").write_text(self.scenario)
        if self.notes:
            (self.root / "audit" / "notes.json").write_text(json.dumps(self.notes))
        if self.expectations is not None:
            path = self.root / "audit" / "expectations.json"
            path.write_text(json.dumps(self.expectations))
        table = pa.Table.from_pylist(self.rows, SCHEMA)
        pq.write_table(table, self.root / "audit" / "results.parquet")
        return self.root


@pytest.fixture
def builder(tmp_path: Path) -> RunBuilder:
    return RunBuilder(tmp_path / "tiny-20261120")


@pytest.fixture
def leaky(builder: RunBuilder) -> Path:
    """Two rounds: a clear leak, a weak one, a failed and an unsupported attack."""
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 1, 1, 28, 28))
    facts = {"lr": 0.1, "steps": 1, "batch_size": 1, "examples": 5, "train_mode": True}
    builder.round(
        1,
        ["client-000", "client-001"],
        absent=["client-004"],
        rejected={"client-005": "update contains NaN in fc1.weight"},
        refused={"client-006": "looks like a trap"},
        metrics={"accuracy": 0.4321, "loss": 1.25},
        facts=facts,
    )
    builder.round(2, ["client-000"], metrics={"accuracy": 0.5678}, facts=facts)
    builder.originals(1, "client-000", first, [7])
    builder.originals(1, "client-001", second, [3])
    good = {"mse": 1e-4, "psnr": 40.0, "ssim": 0.987, "label-accuracy": 1.0}
    poor = {"mse": 0.1, "psnr": 10.0, "ssim": 0.123, "label-accuracy": 0.0}
    builder.cell(1, "client-000", "gs", inputs=first * 0.9, labels=[7], scores=[good])
    builder.cell(1, "client-001", "gs", inputs=1 - second, labels=[4], scores=[poor])
    builder.cell(1, "client-000", "idlg", status="failed", reason="the loss became NaN in step 12")
    builder.cell(
        1, "client-001", "analytic", status="unsupported", reason="the first layer is a convolution"
    )
    builder.expectations = [
        {
            "metric": "psnr",
            "attack": "gs",
            "comparison": ">=",
            "value": 20.0,
            "tolerance": 0.5,
            "measured": 31.25,
            "met": True,
            "source": "Table 3",
        },
        {
            "metric": "ssim",
            "attack": "idlg",
            "comparison": ">=",
            "value": 0.9,
            "tolerance": 0.0,
            "measured": None,
            "met": False,
            "source": "Figure 2",
        },
    ]
    return builder.write()
