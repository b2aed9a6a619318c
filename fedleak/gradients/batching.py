"""How candidates are evaluated together: chosen by a short measurement."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedleak.gradients.derivatives import Update
from fedleak.gradients.factored import cosine_distance
from fedleak.gradients.plan import Batching, Plan

Evaluate = Callable[[Tensor, Tensor], Update]
"""Updates of ``(R, b, *input)`` candidates and their labels."""

_MARGIN = 1.25
"""How much faster something has to be to count as such: noise must not change the choice."""
_HOPELESS = 4.0
"""A way this much slower than its rival with few candidates is not tried with more."""
_SECONDS = 1.0
"""An evaluation that takes longer is not tried with more candidates."""
SHARE = 0.5
"""Part of the available memory that candidates may take."""
_SAME = 1e-2
"""Relative difference up to which two ways agree; TF32 convolutions differ by 1e-3."""


PLANS: dict[str, Plan] = {}
"""Plans by case (model, shapes, device, facts), measured in this process or recorded by
an earlier one: another measurement might find another one, and then the same seed would
give other last digits."""


def choose(
    ways: Mapping[Batching, Evaluate],
    parameters: Mapping[str, Tensor],
    inputs: Tensor,
    labels: Tensor,
) -> Plan:
    """Find the fastest way, and how many candidates fit into memory.

    A network that `vmap` cannot transform, as its control flow depends on the data, is
    evaluated one by one. The explicit way is taken only where its updates are those of
    `vmap`, and then preferred to it unless `vmap` is clearly faster, so that the choice
    is the same the next time. Neither is taken where the loop is clearly faster.

    Args:
        ways: Those to choose from, with ``loop`` among them.
        parameters: Of the shapes of an update, by name.
        inputs: ``(R, b, *input)`` of which only shape, type and device matter.
        labels: ``(R, b)`` or ``(R, b, K)``.
    """
    probe = _probe(inputs)
    target = {name: value[None] for name, value in parameters.items()}

    def work(name: Batching, count: int) -> float:
        """Seconds per candidate of value and gradient, as attacks want them."""

        def objective(values: Tensor) -> Tensor:
            return cosine_distance(ways[name](values, labels[:count]), target).sum()

        started = time.perf_counter()
        grad(objective)(probe[:count])
        if inputs.device.type == "cuda":
            torch.cuda.synchronize(inputs.device)
        return (time.perf_counter() - started) / count

    def fastest_of(name: Batching, rival: float) -> tuple[Plan, float]:
        """With how many at a time it is fastest, and the seconds per candidate."""
        most = fitting(functools.partial(work, name, 1), inputs.device)
        plan, taken = Plan(name, 1), float("inf")
        for count in _counts(min(len(inputs), most)):
            work(name, count)
            each = min(work(name, count), work(name, count))
            if each > taken * _MARGIN:
                break
            plan, taken = Plan(name, count), each
            if count * each > _SECONDS or each > _HOPELESS * rival:
                break
        return plan, taken

    work("loop", 1)
    alone = min(work("loop", 1), work("loop", 1))
    if not _agree(ways, "vmap", "loop", probe[:2], labels[:2]):
        return Plan("loop", 1)
    plan, taken = Plan("loop", 1), alone
    if "explicit" in ways and _agree(ways, "explicit", "vmap", probe[:2], labels[:2]):
        plan, taken = fastest_of("explicit", alone)
    other, seconds = fastest_of("vmap", taken)
    if plan.batching == "loop" or seconds * _MARGIN < taken:
        plan, taken = other, seconds
    return Plan("loop", 1) if alone * _MARGIN < taken else plan


def _counts(most: int) -> Iterator[int]:
    """2, 8, 32, ... and the most: few enough to try."""
    count = 2
    while count < most:
        yield count
        count *= 4
    yield max(1, most)


def _probe(inputs: Tensor) -> Tensor:
    """Values in [0, 1] that differ in scale from candidate to candidate, not at random."""
    count = torch.arange(inputs.numel(), dtype=inputs.dtype, device=inputs.device)
    wave = (0.7 * count + 0.1 * (count / 7).sin()).sin().square().reshape(inputs.shape)
    scale = torch.linspace(1, 0.25, len(inputs), dtype=inputs.dtype, device=inputs.device)
    return wave * scale.reshape(-1, *[1] * (inputs.dim() - 1))


def _agree(
    ways: Mapping[Batching, Evaluate],
    name: Batching,
    plainer: Batching,
    inputs: Tensor,
    labels: Tensor,
) -> bool:
    """Whether a way can be gone and leads where a plainer one does."""
    try:
        ours, theirs = ways[name](inputs, labels), ways[plainer](inputs, labels)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False
    off = sum(float((ours[key] - theirs[key]).detach().square().sum()) for key in theirs)
    return off <= _SAME**2 * sum(float(value.detach().square().sum()) for value in theirs.values())


def fitting(work: Callable[[], object], device: torch.device) -> int:
    """How many times over some work on a device fits into the memory that is available."""
    available: float
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        taken = torch.cuda.max_memory_allocated(device) - before
        cached = torch.cuda.memory_reserved(device) - before
        available = torch.cuda.mem_get_info(device)[0] + cached
    else:
        taken, available = allocated(work), _available_memory()
    return int(SHARE * available / max(taken, 1))


def allocated(work: Callable[[], object]) -> int:
    """Bytes that the operations of some work on the CPU allocate: more than it ever holds."""
    allocations = _Allocations()
    with allocations:
        work()
    return allocations.bytes


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what operations allocate, which is more than is ever held at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not func._schema.is_mutable:
            self.bytes += sum(x.nbytes for x in tree_leaves(result) if isinstance(x, Tensor))
        return result


def _available_memory() -> float:
    """Bytes of main memory that this process may still take; infinite where unknown."""
    free = float("inf")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = 1024.0 * int(line.split()[1])
    # A container may have less than the machine (control groups, version 2).
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current"))
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free = min(free, float(limit.read_text()) - float(used.read_text()))
    return max(free, 0.0)
