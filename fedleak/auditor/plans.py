"""How a run's attacks batch their candidates, measured once and kept with the run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager

from fedleak.captures import RunLayout, write_atomic
from fedleak.gradients import Plan
from fedleak.gradients.batching import PLANS


@contextmanager
def recorded_plans(layout: RunLayout) -> Iterator[None]:
    """Use the run's recorded plans, and record those that are measured inside.

    The choice is made by time and may differ from one measurement to the next, and with
    it the last digits of a result. With the record, a resumed audit and every actor go
    the same way. Where two actors measure the same case at once, the first to write wins.
    """
    before = _read(layout)
    PLANS.update(before)
    yield
    measured = {key: plan for key, plan in PLANS.items() if key not in before}
    if measured:
        together = {**measured, **_read(layout)}
        listed = {key: dataclasses.asdict(plan) for key, plan in together.items()}
        write_atomic(layout.plans, json.dumps(listed, indent=1).encode())


def _read(layout: RunLayout) -> dict[str, Plan]:
    try:
        listed = json.loads(layout.plans.read_bytes())
        return {key: Plan(**plan) for key, plan in listed.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}  # not there yet, or damaged: measured anew
