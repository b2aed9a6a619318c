"""Time of Soteria's selection against the loop of one backward pass a feature and sample.

    OMP_NUM_THREADS=1 python benchmarks/soteria.py

The loop differentiates in the sample alone, which is faster than the original's, whose
backward passes reach the weights too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from tables import markdown, write
from torch import Tensor, nn

from clients.defenses.soteria import largest, ratios
from fedleak.gradients import Representation
from fedleak.models.lenet import LeNet, LeNetDlg
from fedleak.models.mlp import Mlp

RATE, BAR = 0.4, 10
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "LeNet, Mo et al. Table III": (lambda: LeNet().build((3, 32, 32), 10), (3, 32, 32), "fc1"),
    "MLP, 400 hidden": (lambda: Mlp(hidden=(400,)).build((1, 28, 28), 10), (1, 28, 28), "fc2"),
    "LeNet, DLG form": (lambda: LeNetDlg().build((1, 28, 28), 10), (1, 28, 28), "fc1"),
}


def by_loop(representation: Representation, inputs: Tensor) -> Tensor:
    rows = []
    for sample in inputs:
        variable = sample[None].clone().requires_grad_()
        features = representation(variable)[0]
        slopes = [torch.autograd.grad(r, variable, retain_graph=True)[0] for r in features]
        rows.append(torch.stack([slope.norm() for slope in slopes]))
    return torch.stack(rows)


def timed(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    started = time.process_time()
    result = function()
    return time.process_time() - started, result


def compare(name: str, batch: int, rounds: int) -> list[str]:
    build, shape, layer = CASES[name]
    torch.manual_seed(0)
    representation = Representation(build(), layer, train_mode=True)
    inputs = torch.rand(batch, *shape)
    features = representation(inputs)
    representation.gradient_norms(inputs)
    pairs = []
    for _ in range(rounds):
        before, expected = timed(lambda: by_loop(representation, inputs))
        after, found = timed(lambda: representation.gradient_norms(inputs))
        pairs.append((before, after))
    loop, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    count = round(RATE * features.shape[1])
    chosen = [largest(ratios(features, norms), count) for norms in (expected, found)]
    same = (chosen[0] == chosen[1]).all(1).sum()
    return [
        name,
        str(features.shape[1]),
        f"{loop / ours:.1f}x",
        f"{BAR}x" if features.shape[1] == 400 else "",
        f"{loop:.2f}",
        f"{ours:.3f}",
        f"{same} of {batch}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=32, help="samples (default 32)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of timings (default 3)")
    parser.add_argument("--write", metavar="TABLE", help="put it into README.md as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in CASES:
        rows.append(compare(name, options.batch, options.rounds))
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    head = ["model", "features", "speedup", "bar", "loop, s", "ours, s", "same selection"]
    table = markdown(head, rows)
    print(table)
    if options.write:
        write(options.write, table)


if __name__ == "__main__":
    main()
