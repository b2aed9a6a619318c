"""What a reader must know beside the scores of a run, kept for its reports."""

from __future__ import annotations

import json
from collections.abc import Sequence

from torch import nn

from fedleak.auditor.cells import Cell
from fedleak.auditor.observe import observe
from fedleak.auditor.participants import Participants
from fedleak.auditor.subject import Subject
from fedleak.captures import CaptureStore, RunLayout, write_atomic
from fedleak.measures import Measure
from fedleak.models import DROPOUT_NOTE, has_dropout
from fedleak.traps import are_trap_rows

_MISSED_TRAP = (
    "Trap weights were sent that are made for samples in [0, 1], but by --mean the model is given "
    "negative values as well: its neurons hardly tell samples apart, and little is extracted. "
    "Give TrapWeights the model with its normalisation (fedleak.models.normalised)."
)


def write_notes(
    store: CaptureStore, subject: Subject, cells: Sequence[Cell], took_part: Participants | None
) -> None:
    """Write down what a reader of a run's scores must know.

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
    # What is below the mean becomes negative.
    below = any(mean > 0 for mean in subject.assumptions.get("mean") or ())
    if below and any(_trapped(store, subject, cell) for cell in cells):
        notes.append(_MISSED_TRAP)
    notes += subject.notes
    notes += took_part.notes if took_part else ()
    notes += [cell.task.note for cell in cells if isinstance(cell.task, Measure) and cell.task.note]
    write_atomic(store.layout.notes, json.dumps(list(dict.fromkeys(notes)), indent=1).encode())


def _trapped(store: CaptureStore, subject: Subject, cell: Cell) -> bool:
    """Whether a layer that was sent is a trap for samples in [0, 1]."""
    sent = observe(store.load(cell.round, cell.client), subject).parameters
    return any(
        are_trap_rows(sent[f"{name}.weight"], sent[f"{name}.bias"])
        for name, layer in subject.model.named_modules()
        if isinstance(layer, nn.Linear) and f"{name}.bias" in sent
    )


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
