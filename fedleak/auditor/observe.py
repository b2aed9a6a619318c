"""From a capture to what an attack may see of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
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

    The samples' labels are in it only where the threat model grants them.

    Raises:
        CaptureError: The capture's arrays are not those of the model.
        ScenarioError: Learning rate, batch size, steps or examples are unknown.
    """
    facts = _facts(capture, subject)
    sent = _by_model_name(capture.sent, capture, subject)
    received = _by_model_name(capture.received, capture, subject)
    tensors = {name: _tensor(array).to(device) for name, array in sent.items()}
    names = [name for name, _ in subject.model.named_parameters() if name in sent]
    return Observation(
        model=subject.model,
        parameters={name: tensors[name].float() for name in names},
        buffers={name: tensor for name, tensor in tensors.items() if name not in names},
        update=_Update({name: (sent[name], received[name]) for name in names}, facts.lr, device),
        facts=facts,
        input_shape=subject.input_shape,
        classes=subject.classes,
        labels=None if labels is None else torch.tensor(labels, device=device),
    )


class _Update(Mapping[str, torch.Tensor]):
    """``(sent - received) / lr`` by parameter name, float32.

    It is formed in float64 from the float32 parameters that travelled, so the only
    rounding in it is the one on the wire; and when it is asked for, because an extraction
    reads one layer of a model that may be large.

    Args:
        arrays: By name, what was sent and what was received.
        lr: The learning rate.
        device: Where the update is wanted.
    """

    def __init__(
        self, arrays: dict[str, tuple[np.ndarray, np.ndarray]], lr: float, device: torch.device
    ) -> None:
        self._names = tuple(arrays)
        self._arrays = arrays
        self._lr = lr
        self._device = device
        self._made: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._made:
            sent, received = self._arrays[name]
            update = np.asarray(np.subtract(sent, received, dtype=np.float64))
            update /= self._lr
            self._made[name] = torch.from_numpy(update.astype(np.float32)).to(self._device)
            del self._arrays[name]
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _tensor(array: np.ndarray) -> torch.Tensor:
    # PyTorch has no tensors that cannot be written; those of the store can be.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _by_model_name(arrays: Arrays, capture: Capture, subject: Subject) -> Arrays:
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
    return {name: arrays[name] for name in state}


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
