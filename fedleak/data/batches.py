"""Which samples a client trains on: its local hold-out and its batches.

All of it follows from a named stream (see `fedleak.seeding`), so the auditor can
derive again what a client used in a round.
"""

from __future__ import annotations

import numpy as np

from fedleak.records import Indices


def batches(
    examples: int,
    batch_size: int,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    rng: np.random.Generator,
) -> list[Indices]:
    """The batches of one round of local training.

    Every epoch is a fresh permutation of the samples, cut into consecutive batches; its
    last batch is short where ``batch_size`` does not divide ``examples``. ``steps`` may
    end within an epoch or go on into further ones.

    Args:
        examples: Samples the client trains on, >= 1.
        batch_size: Samples per step, >= 1.
        steps: Number of batches wanted. Exactly one of ``steps`` and ``epochs`` is given.
        epochs: Number of whole epochs wanted.
        rng: The client's and round's stream.

    Returns:
        One array of positions in ``0..examples-1`` per step.

    Raises:
        ValueError: Both or neither of ``steps`` and ``epochs`` are given.
    """
    if (steps is None) == (epochs is None):
        raise ValueError("give exactly one of steps and epochs")
    steps_per_epoch = -(-examples // batch_size)
    count = steps if steps is not None else (epochs or 0) * steps_per_epoch
    chosen: list[Indices] = []
    while len(chosen) < count:
        order = rng.permutation(examples).astype(np.int64)
        starts = range(0, examples, batch_size)[: count - len(chosen)]
        chosen += [order[start : start + batch_size] for start in starts]
    return chosen


def poisson_batches(
    examples: int, batch_size: int, steps: int, rng: np.random.Generator
) -> list[Indices]:
    """Batches in which each sample is with the same probability, by itself.

    That is what amplification of privacy by sampling supposes. Sizes vary, around
    ``batch_size`` where there are as many samples; a batch may be empty.

    Args:
        examples: Samples the client trains on, >= 1.
        batch_size: Expected samples per step, >= 1. Where there are fewer, all are in each batch.
        steps: Number of batches wanted.
        rng: The client's and round's stream.

    Returns:
        One array of positions in ``0..examples-1`` per step, ascending.
    """
    rate = batch_size / examples
    return [np.flatnonzero(rng.random(examples) < rate).astype(np.int64) for _ in range(steps)]


def batch_sizes(examples: int, batch_size: int, steps: int) -> list[int]:
    """Sizes of the first ``steps`` batches that `batches` gives.

    They need no permutation, so the central party can work them out from what a client
    discloses.
    """
    steps_per_epoch = -(-examples // batch_size)
    starts = (step % steps_per_epoch * batch_size for step in range(steps))
    return [min(batch_size, examples - start) for start in starts]


def client_split(
    indices: Indices, holdout: float, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Split a client's samples into those it trains on and those it evaluates on.

    Args:
        indices: The client's samples, at least one.
        holdout: Share to hold out, in [0, 1). At least one sample stays for training.
        rng: The client's stream.

    Returns:
        Training and held-out samples, both sorted.
    """
    held = min(round(len(indices) * holdout), len(indices) - 1)
    shuffled = rng.permutation(indices)
    return np.sort(shuffled[held:]), np.sort(shuffled[:held])
