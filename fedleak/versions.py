"""The versions that both sides of a federation must have in common."""

from __future__ import annotations

import functools
from importlib import metadata

import fedleak


@functools.cache
def versions() -> dict[str, str]:
    """This process's version of FedLeak and of Flower, by package."""
    return {"fedleak": fedleak.__version__, "flwr": metadata.version("flwr")}
