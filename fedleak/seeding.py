"""Named random streams.

Every random draw of a run comes from a stream named by what it is for and, where
that applies, by client and round. A stream depends on its name alone, so the same
scenario and seed give the same draws on every engine, in any order of clients, and
the auditor can re-derive which samples a client trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def derive(seed: int, purpose: str, client: int | None = None, round: int | None = None) -> int:
    """Return the 63-bit seed of a named stream, for libraries that take an integer.

    Args:
        seed: The scenario's seed.
        purpose: What the stream is for, for example ``"batches"``.
        client: Partition id, where the stream belongs to one client.
        round: Round number from 1, where the stream belongs to one round.

    Example:
        >>> derive(1, "batches", client=3, round=2) == derive(1, "batches", client=3, round=2)
        True
    """
    name = f"{seed}/{purpose}/{client}/{round}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1


def stream(
    seed: int, purpose: str, client: int | None = None, round: int | None = None
) -> np.random.Generator:
    """Return a fresh NumPy generator at the start of a named stream (see `derive`)."""
    return np.random.default_rng(derive(seed, purpose, client, round))


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Make torch computations inside depend on the seed alone.

    Torch's global draws (dropout) start from the seed, and arithmetic runs on one
    thread: the order of floating-point sums, and with it the last bits of a result,
    depends on the number of threads, which differs from engine to engine. For networks
    of the size that updates can be inverted for, one thread is also the fastest.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
