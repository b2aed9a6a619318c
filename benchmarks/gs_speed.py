"""How much faster the batched engine is than the literature's loop, for the GS attack.

The loop is what the field's published code does: one candidate at a time, its gradient by
`torch.autograd.grad(create_graph=True)`, cosine distance and total variation, signed Adam.
Both sides attack the same update of one 3x32x32 sample with the same start and options.
Times alternate, loop and engine by turns, and the medians' ratio per candidate and
iteration is printed: absolute times say more about the machine than about the code.

    OMP_NUM_THREADS=1 python benchmarks/gs_speed.py
    python benchmarks/gs_speed.py --device cuda
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import get_args

import torch
from tables import markdown, write
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.optimisation import total_variation
from fedleak.gradients import UpdateMap, cosine_distance
from fedleak.gradients.batching import Batching
from fedleak.gradients.update_map import Update
from fedleak.models.lenet import LeNet, LeNetDlg
from fedleak.models.resnet18 import ResNet18
from fedleak.records import TrainingFacts

SHAPE, CLASSES, TV, LR = (3, 32, 32), 10, 1e-6, 0.1


def vgg9() -> nn.Module:
    """C8(3)-C16(3)x2-P(2)-C32(3)x3-P(2)-F256-F128-O with ReLU (Mo et al., Table III)."""
    layers: list[nn.Module] = []
    channels = SHAPE[0]
    for block in ((8, 16, 16), (32, 32, 32)):
        for width in block:
            layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(32 * 8 * 8, 256), nn.ReLU()]
    layers += [nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, CLASSES)]
    return nn.Sequential(*layers)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lenet-dlg": lambda: LeNetDlg().build(SHAPE, CLASSES),
    "lenet": lambda: LeNet().build(SHAPE, CLASSES),
    "vgg9": vgg9,
    "resnet18": lambda: ResNet18().build(SHAPE, CLASSES),
}
BARS = {
    "cpu": {"lenet-dlg": 5.0, "lenet": 4.0, "vgg9": 1.5, "resnet18": 1.0},
    "cuda": {"lenet-dlg": 100.0, "resnet18": 5.0},
}


def loop_step(
    model: nn.Module, label: Tensor, target: list[Tensor], start: Tensor
) -> Callable[[], None]:
    """One iteration of one candidate, as the literature's code does it.

    Its ``backward`` reaches the weights too, whose gradients are then thrown away.
    """
    parameters = list(model.parameters())
    inputs = start[0].clone().requires_grad_()
    optimiser = torch.optim.Adam([inputs], lr=LR)

    def step() -> None:
        optimiser.zero_grad()
        model.zero_grad()
        loss = functional.cross_entropy(model(inputs), label[0])
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        product = squares = norms = torch.zeros((), device=inputs.device)
        for ours, theirs in zip(gradients, target, strict=True):
            product = product + (ours * theirs).sum()
            squares = squares + ours.square().sum()
            norms = norms + theirs.square().sum()
        down = (inputs[..., 1:, :] - inputs[..., :-1, :]).abs().mean()
        across = (inputs[..., :, 1:] - inputs[..., :, :-1]).abs().mean()
        objective = 1 - product / squares.sqrt() / norms.sqrt() + TV * (down + across)
        torch.autograd.backward(objective)
        assert inputs.grad is not None
        inputs.grad.sign_()
        optimiser.step()
        with torch.no_grad():
            inputs.clamp_(0, 1)

    return step


def engine_step(
    mapping: UpdateMap, labels: Tensor, target: Update, start: Tensor
) -> Callable[[], None]:
    """One iteration of all candidates."""
    inputs = start.clone()
    optimiser = torch.optim.Adam([inputs], lr=LR)

    def objective(update: Update, at: Tensor, _: slice) -> Tensor:
        return cosine_distance(update, target) + TV * total_variation(at)

    def step() -> None:
        _, gradient = mapping.value_and_grad(objective, inputs, labels)
        inputs.grad = gradient.sign()
        optimiser.step()
        inputs.clamp_(0, 1)

    return step


def seconds(step: Callable[[], None], repeats: int, device: torch.device) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / repeats


def compare(
    name: str, device: torch.device, restarts: int, rounds: int, batching: Batching | None
) -> list[str]:
    """Time both by turns and give one row of the table."""
    torch.manual_seed(0)
    model = MODELS[name]().to(device).eval()
    truth, label = torch.rand(1, 1, *SHAPE, device=device), torch.zeros(1, 1, dtype=torch.int64)
    labels = label.to(device).expand(restarts, 1)
    start = torch.rand(restarts, 1, *SHAPE, device=device)
    loss = functional.cross_entropy(model(truth[0]), labels[0])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    names = [key for key, _ in model.named_parameters()]
    target = dict(zip(names, gradients, strict=True))
    mapping = UpdateMap(
        model,
        dict(model.named_parameters()),
        dict(model.named_buffers()),
        TrainingFacts(0.1, 1, 1, 1, train_mode=False),
        batching=batching,
    )
    loop = loop_step(model, labels, list(gradients), start)
    aim = {name: value[None] for name, value in target.items()}
    engine = engine_step(mapping, labels, aim, start)
    # The first calls choose the batching and warm both up.
    repeats = max(1, round(0.3 / min(seconds(loop, 2, device), seconds(loop, 2, device))))
    seconds(engine, 2, device)
    pairs = []
    for _ in range(rounds):
        ours = seconds(engine, max(1, repeats // restarts), device) / restarts
        pairs.append((seconds(loop, repeats, device), ours))
    before, after = (statistics.median(times) for times in zip(*pairs, strict=True))
    plan = mapping.plan(start, labels)
    bar = BARS[device.type].get(name)
    wanted = "" if bar is None else f"{bar:g}x"
    return [
        name,
        f"{before / after:.2f}x",
        wanted,
        f"{1e3 * before:.2f}",
        f"{1e3 * after:.2f}",
        f"{plan.batching}, {plan.chunk} at a time",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--restarts", type=int, help="default: 32 on a CPU, 256 on a GPU")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of timings")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batching", choices=get_args(Batching), help="default: as measured")
    parser.add_argument("--write", metavar="TABLE", help="put it into README.md as well")
    options = parser.parse_args()
    device = torch.device(options.device)
    restarts = options.restarts or (32 if device.type == "cpu" else 256)
    threads = torch.get_num_threads()
    print(f"{device}, {threads} thread(s), {restarts} restarts, torch {torch.__version__}\n")
    rows = []
    for name in options.models:
        rows.append(compare(name, device, restarts, options.rounds, options.batching))
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    table = markdown(["model", "speedup", "bar", "loop, ms", "engine, ms", "batching"], rows)
    print(table)
    if options.write:
        write(options.write, table)


if __name__ == "__main__":
    main()
