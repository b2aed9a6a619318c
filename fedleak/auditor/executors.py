"""Where cells run: in this process, or on a pool of Ray actors."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from fedleak.auditor.cells import Cell, Outcome, record_failure, run_cell
from fedleak.auditor.subject import Subject
from fedleak.captures import CaptureStore
from fedleak.errors import ResourceError
from fedleak.private_ray import seclude_ray
from fedleak.records import Truth
from fedleak.scenario import Audit

_TRIES = 2


def execute(
    cells: Sequence[Cell], store: CaptureStore, subject: Subject, settings: Audit
) -> Iterator[Outcome]:
    """Run cells and yield their outcomes as they finish.

    Args:
        cells: What to run.
        store: Where captures are and outcomes go.
        subject: The model. Its truth stays here: no worker is given it.
        settings: Which executor, with how many actors and GPUs.

    Raises:
        ResourceError: More GPUs are asked for than there are.
        CaptureError: A capture is damaged.
    """
    blind = replace(subject, truth=_unknown)
    if settings.executor == "inline":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return (run_cell(cell, store, blind, device) for cell in cells)
    return _on_ray(cells, store, blind, settings)


def _unknown(round: int, client: str) -> Truth | None:
    return None


class _Worker:
    """A Ray actor. It keeps store and model between cells."""

    def __init__(self, store: CaptureStore, subject: Subject, device: torch.device) -> None:
        self._store = store
        self._subject = subject
        self._device = device

    def run(self, cell: Cell) -> Outcome:
        return run_cell(cell, self._store, self._subject, self._device)


def _on_ray(
    cells: Sequence[Cell], store: CaptureStore, subject: Subject, settings: Audit
) -> Iterator[Outcome]:
    """Each actor has one cell at a time. One that dies is replaced, and its cell tried
    once more; then the cell is recorded as failed and the rest go on."""
    if not cells:
        return
    with _session(settings) as ray:
        gpus = _gpus_per_actor(ray, settings)
        # One CPU and one thread each: attacks compute on one thread (see `reproducible`).
        actor_class = ray.remote(num_cpus=1, num_gpus=gpus)(_Worker)
        # Ray shows an actor its own GPUs only, or logical ones where there is none.
        device = torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")
        shared = ray.put(subject)

        def start() -> Any:
            return actor_class.remote(store, shared, device)

        waiting = list(reversed(cells))
        tries = dict.fromkeys((cell.name for cell in cells), 0)
        running: dict[Any, tuple[Any, Cell]] = {}
        idle = [start() for _ in range(min(len(cells), _pool_size(ray, settings, gpus)))]
        while waiting or running:
            while waiting and idle:
                actor, cell = idle.pop(), waiting.pop()
                tries[cell.name] += 1
                running[actor.run.remote(cell)] = (actor, cell)
            (finished, *_), _ = ray.wait(list(running), num_returns=1)
            actor, cell = running.pop(finished)
            try:
                outcome = ray.get(finished)
            except ray.exceptions.RayActorError as death:
                idle.append(start())
                if tries[cell.name] < _TRIES:
                    waiting.append(cell)
                    continue
                reason = f"its worker died {_TRIES} times: {str(death).splitlines()[0]}"
                outcome = record_failure(cell, store, reason)
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            else:
                idle.append(actor)
            yield outcome


@contextmanager
def _session(settings: Audit) -> Iterator[Any]:
    """The auditor's own Ray session; never the simulation's (it would be shut down)."""
    if settings.address is None:
        seclude_ray()
    import ray

    # About a change of Ray's defaults that does not concern actors with GPUs of their own.
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    ray.init(
        address=settings.address or "local",
        include_dashboard=None if settings.address else False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        # Actors import the user's own model from where this process does.
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
    )
    try:
        yield ray
    finally:
        ray.shutdown()


def _gpus_per_actor(ray: Any, settings: Audit) -> float:
    available = float(ray.cluster_resources().get("GPU", 0.0))
    if settings.gpus_per_actor is None:
        return min(1.0, available)
    if settings.gpus_per_actor > available:
        raise ResourceError(
            f"audit.gpus_per_actor is {settings.gpus_per_actor:g}, the Ray session has "
            f"{available:g} GPUs: ask for less, or name a cluster with audit.address"
        )
    return settings.gpus_per_actor


def _pool_size(ray: Any, settings: Audit, gpus: float) -> int:
    resources = ray.cluster_resources()
    room = int(resources["CPU"])
    if gpus:
        room = min(room, int(resources["GPU"] / gpus + 1e-9))
    return min(settings.actors or room, room)
