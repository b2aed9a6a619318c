"""How a run on a SuperLink ended, as its run directory and Flower tell it."""

from __future__ import annotations

import json

from fedleak.captures import RunLayout
from fedleak.errors import FedLeakError, QuorumLost, ResourceError

_COMPLETED = "finished:completed"


def raise_unless_completed(layout: RunLayout, status: str, details: str) -> None:
    """Tell a failed run's reason.

    Args:
        layout: The run directory.
        status: Of the run, as Flower says.
        details: What Flower says besides; of a run that ended before it had a directory
            there is nothing else.

    Raises:
        QuorumLost: Too few clients were left.
        ResourceError: It failed otherwise.
    """
    if status == _COMPLETED:
        return
    error, reason = "", details or f"Flower says {status}; its log says why"
    if layout.ended.exists():
        record = json.loads(layout.ended.read_bytes())
        error, reason = record["error"] or error, record["reason"] or reason
    kept = f". Captures so far and the logs: {layout.root}" if layout.root.is_dir() else ""
    kind: type[FedLeakError] = QuorumLost if error == QuorumLost.__name__ else ResourceError
    raise kind(f"{reason}{kept}")
