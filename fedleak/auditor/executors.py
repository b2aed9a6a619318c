"""Where cells run: in this process, or on a pool of Ray actors."""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from fedleak.attacks import Attack
from fedleak.attacks import Progress as AttackProgress
from fedleak.auditor.cells import Cell, Outcome, record_failure, run_cells
from fedleak.auditor.gpu_shares import actor_need, gpu_share
from fedleak.auditor.subject import Subject
from fedleak.captures import CaptureStore
from fedleak.errors import ResourceError
from fedleak.measures import Measure
from fedleak.private_ray import seclude_ray
from fedleak.records import Truth
from fedleak.scenario import Audit

_TRIES = 2


OnStep = Callable[[str, int, int], None]
"""Told the name of an attack or a measure, its step and their total."""


def execute(
    cells: Sequence[Cell],
    store: CaptureStore,
    subject: Subject,
    settings: Audit,
    on_step: OnStep | None = None,
) -> Iterator[Outcome]:
    """Run cells and yield their outcomes as they finish.

    Args:
        cells: What to run.
        store: Where captures are and outcomes go.
        subject: What is audited. Attacks are not given its truth and its data.
        settings: Which executor, with how many actors and GPUs.
        on_step: Called now and then by attacks that run in this process.

    Raises:
        ResourceError: More GPUs are asked for than there are.
        CaptureError: A capture is damaged.
    """
    if settings.executor == "inline":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        shown = {False: _blind(subject), True: subject}
        return (
            outcome
            for group in _groups(cells, workers=1)
            for outcome in run_cells(
                group, store, shown[_measures(group)], device, _teller(group[0], on_step)
            )
        )
    return _on_ray(cells, store, subject, settings)


def _blind(subject: Subject) -> Subject:
    """What an attack is given: nothing that the client kept."""
    return replace(subject, truth=_unknown, data=None, release=None)


def _measures(group: Sequence[Cell]) -> bool:
    """Whether the cells are of a measure; those of one group are of one task."""
    return isinstance(group[0].task, Measure)


def _teller(cell: Cell, on_step: OnStep | None) -> AttackProgress | None:
    if on_step is None:
        return None
    return lambda iteration, total, _: on_step(str(cell.task.kind), iteration, total)


def _groups(cells: Sequence[Cell], workers: int) -> Iterator[list[Cell]]:
    """Cells that are worth running together, divided fairly: those of one task and round.

    What was sent is the same for all of a round's clients, unless a central party gave
    some of them another model; the attack itself looks which of them go together.
    """
    alike: dict[tuple[int, str], list[Cell]] = {}
    for cell in cells:
        alike.setdefault((cell.round, cell.settings), []).append(cell)
    for group in alike.values():
        task = group[0].task
        appetite = task.appetite if isinstance(task, Attack) else 1
        size = min(appetite, math.ceil(len(group) / workers))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _unknown(round: int, client: str) -> Truth | None:
    return None


class _Worker:
    """A Ray actor. It keeps store and model between cells."""

    def __init__(self, store: CaptureStore, blind: Subject, device: torch.device) -> None:
        self._store = store
        self._blind = blind
        self._device = device

    def run(self, cells: Sequence[Cell], subject: Subject | None = None) -> Iterator[Outcome]:
        """Run cells of an attack or, where the whole subject is given, of a measure."""
        return run_cells(cells, self._store, subject or self._blind, self._device)


def _on_ray(
    cells: Sequence[Cell], store: CaptureStore, subject: Subject, settings: Audit
) -> Iterator[Outcome]:
    """Each actor has one group of cells at a time. One that dies is replaced, and the cells
    that it left are tried once more, each by itself; then those whose worker dies again
    are recorded as failed and the rest go on."""
    if not cells:
        return
    with _session(settings) as ray:
        gpus = _gpus_per_actor(ray, cells, store, subject, settings)
        # One CPU and one thread each: attacks compute on one thread (see `reproducible`).
        actor_class = ray.remote(num_cpus=1, num_gpus=gpus)(_Worker)
        # Ray shows an actor its own GPUs only, or logical ones where there is none.
        device = torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")
        blind = ray.put(_blind(subject))
        whole = ray.put(subject) if any(_measures([cell]) for cell in cells) else None

        def start() -> Any:
            return actor_class.remote(store, blind, device)

        workers = min(len(cells), _pool_size(ray, settings, gpus))
        waiting = deque(_groups(cells, workers))
        tries = dict.fromkeys((cell.name for cell in cells), 0)
        # By what streams an actor's outcomes: the actor, and the cells it has not finished.
        running: dict[Any, tuple[Any, dict[str, Cell]]] = {}
        idle = [start() for _ in range(min(len(waiting), workers))]
        while waiting or running:
            while waiting and idle:
                actor, group = idle.pop(), waiting.popleft()
                for cell in group:
                    tries[cell.name] += 1
                given = [group, whole] if _measures(group) else [group]
                stream = actor.run.options(num_returns="streaming").remote(*given)
                running[stream] = actor, {cell.name: cell for cell in group}
            (stream, *_), _ = ray.wait(list(running), num_returns=1)
            actor, unfinished = running[stream]
            try:
                outcome = ray.get(next(stream))
            except StopIteration:
                del running[stream]
                idle.append(actor)
            except ray.exceptions.RayActorError as death:
                del running[stream]
                idle.append(start())
                for cell in unfinished.values():
                    if tries[cell.name] < _TRIES:
                        waiting.append([cell])
                    else:
                        said = str(death).splitlines()[0]
                        reason = f"its worker died {_TRIES} times: {said}"
                        yield record_failure(cell, store, reason)
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            else:
                del unfinished[outcome.cell]
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


def _gpus_per_actor(
    ray: Any, cells: Sequence[Cell], store: CaptureStore, subject: Subject, settings: Audit
) -> float:
    """As asked for; else a share that the memory allows, where it can be looked up."""
    resources = ray.cluster_resources()
    available = float(resources.get("GPU", 0.0))
    if settings.gpus_per_actor is None:
        memory = _gpu_memory() if settings.address is None else None
        gpus = int(available)
        if memory is None or gpus == 0:
            return min(1.0, available)
        groups = list(_groups(cells, gpus))
        most = min(len(groups), int(resources["CPU"]), settings.actors or len(groups))
        return gpu_share(memory, actor_need(groups, store, subject), gpus, most)
    if settings.gpus_per_actor > available:
        raise ResourceError(
            f"audit.gpus_per_actor is {settings.gpus_per_actor:g}, the Ray session has "
            f"{available:g} GPUs: ask for less, or name a cluster with audit.address"
        )
    return settings.gpus_per_actor


def _gpu_memory() -> int | None:
    """Bytes of this machine's smallest GPU; None without CUDA."""
    if not torch.cuda.is_available():
        return None
    devices = range(torch.cuda.device_count())
    return min(torch.cuda.get_device_properties(index).total_memory for index in devices)


def _pool_size(ray: Any, settings: Audit, gpus: float) -> int:
    resources = ray.cluster_resources()
    room = int(resources["CPU"])
    if gpus:
        # An actor's share is one of a single GPU.
        per_unit = int(max(1.0, gpus) / gpus + 1e-9)
        room = min(room, per_unit * int(resources["GPU"] / max(1.0, gpus)))
    return min(settings.actors or room, room)
