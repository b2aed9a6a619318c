"""A look at memory and disk before a run starts."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from fedleak.errors import ResourceError
from fedleak.scenario import Prepared

_TRAINING_COPIES = 6
"""Parameters, gradient, momentum, the message's copy, the reply and its decoded form."""


@dataclass(frozen=True)
class Estimate:
    """What a run will need at most, in bytes."""

    memory: int
    disk: int


def estimate(prepared: Prepared) -> Estimate:
    """Bound a run's memory and disk from the model's size and the numbers of clients.

    Captures dominate the disk: every asked client's update in every round, and the
    model sent, once a round. Memory holds the data and, at the end of a round, all of
    its updates, both as messages and decoded.
    """
    model = prepared.model()
    model_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    federation = prepared.scenario.federation
    data = prepared.splits.train.inputs.nbytes + prepared.splits.test.inputs.nbytes
    return Estimate(
        memory=data + model_bytes * (_TRAINING_COPIES + 2 * federation.asked),
        disk=federation.rounds * (federation.asked + 1) * model_bytes,
    )


def check_resources(prepared: Prepared, target: Path) -> Estimate:
    """Refuse a run that this machine cannot hold.

    Args:
        prepared: The scenario.
        target: Where the run directory is to be made; the nearest existing parent's
            file system counts.

    Raises:
        ResourceError: Too little memory or disk is free, there is no GPU to train on,
            or the target cannot be written; says what is needed and what to change.
    """
    needed = estimate(prepared)
    if prepared.scenario.client.device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("client.device is 'cuda', but torch sees no GPU here: set it to 'cpu'")
    place = target.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        raise ResourceError(f"no permission to write in {place}; name another place with --runs")
    free_disk = shutil.disk_usage(place).free
    if needed.disk > free_disk:
        raise ResourceError(
            f"captures need up to {_gib(needed.disk)} of disk, {place} has {_gib(free_disk)} free: "
            "ask fewer clients, run fewer rounds or choose another place"
        )
    free_memory = _free_memory()
    if free_memory is not None and needed.memory > free_memory:
        raise ResourceError(
            f"the run needs about {_gib(needed.memory)} of memory, {_gib(free_memory)} is free: "
            "ask fewer clients each round or use a smaller model"
        )
    return needed


def _free_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":") for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: nothing to compare with
        return None


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
