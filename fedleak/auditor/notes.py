"""What a reader must know beside the scores of a run, kept for its reports."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence

from torch import nn

from fedleak.attacks import Analytic
from fedleak.attacks.analytic import agreed_values
from fedleak.attacks.embedding import behind_embedding
from fedleak.auditor.cells import Cell, finished
from fedleak.auditor.observe import observe
from fedleak.auditor.participants import Participants
from fedleak.auditor.subject import Subject
from fedleak.captures import CaptureStore, RunLayout, write_atomic
from fedleak.errors import AttackFailed
from fedleak.models import DROPOUT_NOTE, has_dropout
from fedleak.traps import are_trap_rows

_MISSED_TRAP = (
    "Trap weights were sent that are made for samples in [0, 1], but by --mean the model is given "
    "negative values as well: its neurons hardly tell samples apart, and little is extracted. "
    "Give TrapWeights the model with its normalisation (fedleak.models.normalised)."
)

_CLEARLY = 0.05
"""How far outside of [0, 1] a value is when neither rounding nor an outlier puts it there."""


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
    notes += _outside(store, subject, cells)
    notes += subject.notes
    notes += took_part.notes if took_part else ()
    # Of those that an earlier audit measured as well.
    notes += [outcome.note for outcome in finished(store.layout) if outcome.note]
    write_atomic(store.layout.notes, json.dumps(list(dict.fromkeys(notes)), indent=1).encode())


def _trapped(store: CaptureStore, subject: Subject, cell: Cell) -> bool:
    """Whether a layer that was sent is a trap for samples in [0, 1]."""
    sent = observe(store.load(cell.round, cell.client), subject).parameters
    return any(
        are_trap_rows(sent[f"{name}.weight"], sent[f"{name}.bias"])
        for name, layer in subject.model.named_modules()
        if isinstance(layer, nn.Linear) and f"{name}.bias" in sent
    )


def _outside(store: CaptureStore, subject: Subject, cells: Sequence[Cell]) -> Iterator[str]:
    """That another app's samples lie outside of [0, 1], as far as updates show it.

    Who wrote the app knows what it does to pixels; captures hold no samples. But what
    several neurons give alike is a sample, and it shows in which range these lie.
    """
    stated = "model" in subject.assumptions
    if not stated or behind_embedding(subject.model, subject.input_shape) is not None:
        return
    ranges = []
    for cell in cells:
        if isinstance(cell.task, Analytic):
            observation = observe(store.load(cell.round, cell.client), subject)
            with contextlib.suppress(AttackFailed):
                ranges.append(agreed_values(observation))
    known = [values for values in ranges if values is not None]
    low, high = min((v[0] for v in known), default=0), max((v[1] for v in known), default=1)
    if low < -_CLEARLY or high > 1 + _CLEARLY:
        yield (
            f"Neurons agree on samples with values from {low:.2g} to {high:.2g}, but attacks look "
            "in [0, 1] alone. If the app normalises what its model is given, say so with --mean "
            "and --std."
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
