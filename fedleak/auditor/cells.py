"""Cells: one attack on one capture each, and the files that hold their outcome."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import safetensors
import safetensors.torch

from fedleak.attacks import Attack
from fedleak.auditor.observe import observe
from fedleak.auditor.subject import Subject
from fedleak.captures import CaptureStore, RunLayout, write_atomic
from fedleak.errors import CaptureError, FedLeakError
from fedleak.records import Reconstruction, partition_of
from fedleak.seeding import derive


@dataclass(frozen=True)
class Cell:
    """One attack on one capture."""

    round: int
    client: str
    attack: Attack

    @property
    def name(self) -> str:
        """Unique among all settings of all attacks: ``round-0001.client-000.gs-1a2b3c``."""
        settings = hashlib.sha256(self.attack.model_dump_json().encode()).hexdigest()[:6]
        kind = str(self.attack.kind).replace(":", ".")
        return f"round-{self.round:04d}.{self.client}.{kind}-{settings}"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell, as its JSON file says."""

    cell: str
    round: int
    client: str
    attack: str
    parameters: dict[str, Any]
    status: Literal["done", "failed", "unsupported"]
    reason: str
    seconds: float
    samples: int


def run_cell(cell: Cell, store: CaptureStore, subject: Subject) -> Outcome:
    """Attack one capture and write the outcome; a finished file is a finished cell.

    An attack that cannot work, diverges or breaks gives an outcome that says so; it
    never stops the other cells.

    Raises:
        CaptureError: The capture itself is damaged.
    """
    capture = store.load(cell.round, cell.client)
    started = time.perf_counter()
    status: Literal["done", "failed", "unsupported"] = "done"
    reason, samples = "", 0
    reconstruction: Reconstruction | None = None
    try:
        observation = observe(capture, subject)
        samples = observation.samples
        unsupported = cell.attack.unsupported(
            subject.model, observation.facts, subject.input_shape, subject.classes
        )
        if unsupported is not None:
            status, reason = "unsupported", unsupported
        else:
            reconstruction = cell.attack.reconstruct(observation, _seed(cell, subject))
    except FedLeakError as error:
        status, reason = "failed", str(error)
    except Exception:
        status, reason = "failed", traceback.format_exc()
    outcome = Outcome(
        cell=cell.name,
        round=cell.round,
        client=cell.client,
        attack=cell.attack.kind,
        parameters=cell.attack.model_dump(mode="json"),
        status=status,
        reason=reason,
        seconds=time.perf_counter() - started,
        samples=samples,
    )
    folder = store.layout.cells
    if reconstruction is not None:
        tensors = {"inputs": reconstruction.inputs, "confidence": reconstruction.confidence}
        if reconstruction.labels is not None:
            tensors["labels"] = reconstruction.labels
        content = safetensors.torch.save(
            {k: t.detach().cpu().contiguous() for k, t in tensors.items()}
        )
        write_atomic(folder / f"{cell.name}.safetensors", content)
    write_atomic(folder / f"{cell.name}.json", json.dumps(vars(outcome), indent=1).encode())
    return outcome


def finished(layout: RunLayout) -> Iterator[Outcome]:
    """Outcomes of all finished cells, by name.

    Raises:
        CaptureError: A cell's file is damaged; names it and says what to do.
    """
    for path in sorted(layout.cells.glob("*.json")):
        try:
            yield Outcome(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise CaptureError(
                f"{path} cannot be read ({error}); remove it and the cell is run again"
            ) from error


def reconstruction_of(layout: RunLayout, outcome: Outcome) -> Reconstruction:
    """What a finished cell reconstructed.

    Raises:
        CaptureError: The file is missing or damaged; names it.
    """
    path = layout.cells / f"{outcome.cell}.safetensors"
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise CaptureError(
            f"{path} cannot be read ({error}); remove it and {path.stem}.json, "
            "and the cell is run again"
        ) from error
    return Reconstruction(
        inputs=tensors["inputs"],
        labels=tensors.get("labels"),
        confidence=tensors["confidence"],
    )


def _seed(cell: Cell, subject: Subject) -> int:
    return derive(
        subject.seed, f"attack/{cell.name}", client=partition_of(cell.client), round=cell.round
    )
