"""What trap weights and their extraction cost, and what capturing adds to a round.

    python benchmarks/trap_weights.py

Times are CPU seconds of this process on one thread, and of a round those on the wall as well,
each the best of several turns.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.run import Run
from tables import markdown, write
from torch import Tensor, nn
from torch.nn import functional

from clients.app import client_app
from fedleak import load_scenario
from fedleak.attacks import Analytic
from fedleak.attacks.structure import samples_like
from fedleak.captures import CaptureStore
from fedleak.federation.inline import InlineGrid, identify_server
from fedleak.models import BoenischFc
from fedleak.records import Observation, TrainingFacts
from fedleak.scenario import prepare
from fedleak.traps import set_trap, trap_rows
from server_strategies import HonestButCurious

SHAPE = (3, 32, 32)


def best_of(turns: int, work: Callable[[], object]) -> float:
    """Least CPU seconds that some work takes."""
    return min(seconds(work)[0] for _ in range(turns))


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that some work takes, of the CPU and on the wall."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def photos(count: int) -> Tensor:
    """CIFAR-10 training photos where they are at hand, else smooth noise."""
    file = Path(os.environ.get("FEDLEAK_DATA", ".")) / "cifar10/cifar10_train10000_test2000.npz"
    if file.exists():
        kept = np.load(file)["x_train"][:count].transpose(0, 3, 1, 2)
        return torch.from_numpy(kept).float() / 255
    print("no CIFAR-10 under FEDLEAK_DATA: smooth noise in its place")
    return samples_like(count, SHAPE).float()


def extraction(turns: int, batch: int, lr: float = 1.0) -> tuple[float, float]:
    """CPU seconds of the backward pass and of the extraction from its gradient."""
    torch.manual_seed(0)
    model: nn.Module = BoenischFc().build(SHAPE, 10)
    rng = np.random.default_rng(0)
    made = set_trap(model, model.state_dict(), True, SHAPE, scaling=0.95, sigma=1e-3, rng=rng)
    model.load_state_dict({**model.state_dict(), **made})
    inputs, labels = photos(batch), torch.from_numpy(rng.integers(0, 10, batch))
    weights = list(model.parameters())
    backward = []
    for _ in range(turns):
        loss = functional.cross_entropy(model(inputs), labels)
        started = time.process_time()
        gradient = torch.autograd.grad(loss, weights)
        backward.append(time.process_time() - started)
    sent = {name: value.detach() for name, value in model.named_parameters()}
    observation = Observation(
        model=model,
        parameters=sent,
        buffers={},
        update={
            name: (value - (value - lr * g)) / lr
            for (name, value), g in zip(sent.items(), gradient, strict=True)
        },
        facts=TrainingFacts(lr, 1, batch, batch),
        input_shape=SHAPE,
        classes=10,
    )
    extracted = Analytic().reconstruct(observation, 0)
    print(f"{len(extracted.inputs)} of {batch} photos extracted")
    return min(backward), best_of(turns, lambda: Analytic().reconstruct(observation, 0))


def rounds(turns: int) -> tuple[float, float]:
    """What capturing adds to a round, as a share of it: in CPU time and on the wall."""
    scenario = load_scenario(
        {
            "data": {"kind": "mnist-5k"},
            "model": {"kind": "lenet"},
            "federation": {"clients": 10},
            "client": {"local_epochs": 1, "batch_size": 32},
        }
    )
    start = ArrayRecord(prepare(scenario).model().state_dict())
    run = Run.create_empty(run_id=1)
    identify_server(run)
    logging.getLogger("flwr").setLevel("ERROR")

    def one(strategy: Strategy) -> None:
        grid = InlineGrid(client_app(lambda _: scenario), 10, run)
        strategy.start(grid=grid, initial_arrays=start, num_rounds=1)

    def plain() -> FedAvg:
        return FedAvg(fraction_evaluate=0.0)

    without, captured = [], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):  # by turns, for the machine may be busier now than then
            without.append(seconds(functools.partial(one, plain())))
            watched = HonestButCurious(plain(), CaptureStore(Path(folder) / str(turn)))
            captured.append(seconds(functools.partial(one, watched)))
    cpu, wall = np.min(captured, axis=0) / np.min(without, axis=0) - 1
    return float(cpu), float(wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7, help="turns of each (default 7)")
    parser.add_argument("--batch", type=int, default=100, help="photos (default 100)")
    parser.add_argument("--write", metavar="TABLE", help="put it into README.md as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    made = best_of(options.turns, lambda: trap_rows(1000, 3072, scaling=0.95, sigma=0.5, rng=rng))
    large = best_of(1, lambda: trap_rows(1000, 150_528, scaling=0.99, sigma=0.5, rng=rng))
    backward, extracted = extraction(options.turns, options.batch)
    cpu, wall = rounds(2 * options.turns)
    table = markdown(
        ["what", "measured", "bar"],
        [
            ["trap rows, 1000 x 3,072 (CIFAR-10)", f"{made:.2f} s", "< 1 s"],
            ["trap rows, 1000 x 150,528 (ImageNet)", f"{large:.1f} s", "seconds"],
            [
                f"extraction, N = 1000, B = {options.batch}, over the backward pass",
                f"{extracted / backward:.2f}x ({1000 * extracted:.0f} ms)",
                "<= 1x",
            ],
            [
                "capturing, of a round of 10 clients, LeNet, one epoch",
                f"{wall:+.1%} on the wall, {cpu:+.1%} of CPU time",
                "<= +5 %",
            ],
        ],
    )
    print(table)
    if options.write:
        write(options.write, table)


if __name__ == "__main__":
    main()
