"""What a reader must know beside the scores of a run, kept for its reports."""

from __future__ import annotations

import json
from collections.abc import Iterable

from fedleak.auditor.cells import Cell
from fedleak.auditor.participants import Participants
from fedleak.auditor.subject import Subject
from fedleak.captures import CaptureStore, RunLayout, write_atomic
from fedleak.measures import Measure
from fedleak.models import DROPOUT_NOTE, has_dropout


def write_notes(
    store: CaptureStore, subject: Subject, cells: Iterable[Cell], took_part: Participants | None
) -> None:
    """Write down what limits the scores of a run.

    Args:
        store: The run's captures.
        subject: The model that clients train, and what there is to know of it.
        cells: What is audited.
        took_part: Of a deployment, its clients.
    """
    cells = list(cells)
    trained = has_dropout(subject.model) and any(
        _in_training_mode(store, subject, cell) for cell in cells
    )
    notes = [DROPOUT_NOTE] if trained else []
    notes += subject.notes
    notes += took_part.notes if took_part else ()
    notes += [cell.task.note for cell in cells if isinstance(cell.task, Measure) and cell.task.note]
    write_atomic(store.layout.notes, json.dumps(list(dict.fromkeys(notes)), indent=1).encode())


def _in_training_mode(store: CaptureStore, subject: Subject, cell: Cell) -> bool:
    """As `observe` has it: what a capture does not say is torch's default."""
    capture = store.load(cell.round, cell.client)
    if "train_mode" in subject.facts:
        return bool(subject.facts["train_mode"])
    return True if capture.facts is None else capture.facts.train_mode


def read_notes(layout: RunLayout) -> tuple[str, ...]:
    """What `write_notes` wrote; nothing where no audit has finished."""
    try:
        return tuple(json.loads(layout.notes.read_bytes()))
    except (FileNotFoundError, ValueError):
        return ()
