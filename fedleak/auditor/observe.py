"""From a capture to what an attack may see of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from fedleak.auditor.subject import Subject
from fedleak.errors import CaptureError, Problem, ScenarioError
from fedleak.records import Arrays, Capture, Observation, TrainingFacts, training_facts

_MOST_NAMES = 6
_CPU = torch.device("cpu")


def observe(
    capture: Capture,
    subject: Subject,
    device: torch.device = _CPU,
    labels: Sequence[int] | None = None,
) -> Observation:
    """Make the observation of one capture. It holds nothing that the client kept.

    The update is formed in float64 from the float32 parameters that travelled, so the
    only rounding in it is the one on the wire. The samples' labels are in it only where
    the threat model grants them.

    Raises:
        CaptureError: The capture's arrays are not those of the model.
        ScenarioError: Learning rate, batch size, steps or examples are unknown.
    """
    facts = _facts(capture, subject)
    sent = _by_model_name(capture.sent, capture, subject)
    received = _by_model_name(capture.received, capture, subject)
    parameters = {name for name, _ in subject.model.named_parameters()}
    return Observation(
        model=subject.model,
        parameters={name: sent[name].float().to(device) for name in sent if name in parameters},
        buffers={name: sent[name].to(device) for name in sent if name not in parameters},
        update={
            name: ((sent[name].double() - received[name].double()) / facts.lr).float().to(device)
            for name in sent
            if name in parameters
        },
        facts=facts,
        input_shape=subject.input_shape,
        classes=subject.classes,
        labels=None if labels is None else torch.tensor(labels, device=device),
    )


def _by_model_name(arrays: Arrays, capture: Capture, subject: Subject) -> dict[str, torch.Tensor]:
    """Arrays under the model's own names, in its order."""
    state = subject.model.state_dict()
    numbered = len(arrays) == len(state) and all(name.isdecimal() for name in arrays)
    if numbered and set(arrays) != set(state):
        # A list of NumPy arrays travels under the names "0", "1", ... in the state
        # dict's order.
        arrays = dict(zip(state, (arrays[key] for key in sorted(arrays, key=int)), strict=True))
    where = f"round {capture.round}, {capture.client}"
    if other := sorted(set(state) ^ set(arrays)):
        more = f" and {len(other) - _MOST_NAMES} more" if len(other) > _MOST_NAMES else ""
        raise CaptureError(
            f"{where}: the capture is of another model, it differs in "
            f"{', '.join(other[:_MOST_NAMES])}{more}"
        )
    for name, tensor in state.items():
        if tuple(arrays[name].shape) != tuple(tensor.shape):
            raise CaptureError(
                f"{where}: {name} has shape {tuple(arrays[name].shape)} in the capture and "
                f"{tuple(tensor.shape)} in the model"
            )
    return {name: torch.from_numpy(arrays[name].copy()) for name in state}


def _facts(capture: Capture, subject: Subject) -> TrainingFacts:
    """The capture's training facts, and over them those that the subject states."""
    known = capture.disclosed if capture.facts is None else dataclasses.asdict(capture.facts)
    if "epochs" in subject.facts:
        known = {name: value for name, value in known.items() if name != "steps"}
    facts = training_facts({**known, **subject.facts})
    if facts is None:
        listed = ", ".join(f"{name} = {value}" for name, value in known.items()) or "nothing"
        raise ScenarioError(
            Problem(
                "--fact",
                f"round {capture.round}, {capture.client}: lr, batch_size, examples and epochs "
                f"or steps must be known; the capture says {listed}. Give the others, for "
                "example --fact lr=0.1 --fact batch_size=4 --fact epochs=1",
            )
        )
    return facts
