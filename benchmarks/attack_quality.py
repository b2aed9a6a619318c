"""How well, and how fast, each optimisation attack reconstructs CIFAR-10 test images.

A client trains with SGD on a few images; what travels are float32 parameters. For each
attack: the PSNR of what it returns (the mean over a client's images), its time, and the
time at which the candidate it would return passed 30 dB and came within 0.1 dB of the
attack's own best. All attacks meet a client before the next one comes, and the last attack
is the one that the others are compared with. Needs the environment variable FEDLEAK_DATA,
a folder that holds cifar10/*.npz; no network.

    python benchmarks/attack_quality.py --attack gauss-newton --attack "gs restarts=1"
    python benchmarks/attack_quality.py --model "lenet pooling=average" --attack gs
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import markdown, write
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks import ATTACKS, Attack
from fedleak.attacks.optimisation import Best
from fedleak.gradients import batches
from fedleak.measures import match
from fedleak.models import INITS, MODELS, build
from fedleak.records import Observation, Reconstruction, TrainingFacts, Truth

SHAPE, CLASSES = (3, 32, 32), 10
NEVER = float("inf")


@dataclass(frozen=True)
class Outcome:
    """What one attack made of one client.

    Attributes:
        quality: dB of what it returned.
        of_any: dB of the restart that came closest, which only the truth can tell.
        labels: Whether it had all labels.
        seconds: How long it took.
        to_30: Seconds to 30 dB, infinite if never.
        to_best: Seconds to its own best, less 0.1 dB.
    """

    quality: float
    of_any: float
    labels: bool
    seconds: float
    to_30: float
    to_best: float


def main() -> None:
    """Run the attacks that are asked for and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--attack", action="append", required=True, help='"KIND NAME=VALUE ...", once or more'
    )
    parser.add_argument("--model", default="lenet-dlg", help='"KIND NAME=VALUE ..."')
    parser.add_argument("--init", default="default", help='"KIND NAME=VALUE ..."')
    parser.add_argument("--clients", type=int, default=20, help="with the first images in turn")
    parser.add_argument("--images", type=int, default=1, help="images of each client")
    parser.add_argument("--batch-size", type=int, help="default: all of its images")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.1, help="the client's learning rate")
    parser.add_argument("--eval", action="store_true", help="batch norm in evaluation mode")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the attacks")
    parser.add_argument("--write", metavar="TABLE", help="put it into README.md as well")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    size = asked.batch_size or asked.images
    steps = asked.epochs * -(-asked.images // size)
    facts = TrainingFacts(asked.lr, steps, size, asked.images, train_mode=not asked.eval)
    attacks = {text: _made(ATTACKS, text) for text in asked.attack}
    model, init = _made(MODELS, asked.model), _made(INITS, asked.init)
    outcomes: dict[str, list[Outcome]] = {text: [] for text in attacks}
    for client, (inputs, labels) in enumerate(_clients(asked.clients, asked.images)):
        network = build(model, init, SHAPE, CLASSES, asked.seed)
        observation = _observe(network, inputs, labels, facts)
        for text, attack in attacks.items():
            outcome = _attacked(attack, observation, inputs, labels, asked.seed)
            outcomes[text].append(outcome)
            print(f"client {client}: {text}: {outcome}", file=sys.stderr, flush=True)
    table = _table(outcomes)
    print(table)
    if asked.write:
        write(asked.write, table)


def _table(outcomes: dict[str, list[Outcome]]) -> str:
    head = ["attack", "median dB", "worst", "best", "at 30 dB", "at 30 dB by any restart"]
    head += ["at 45 dB", "labels exact", "seconds", "to 30 dB", "to its best"]
    rows = []
    *_, last = outcomes.values()
    if len(outcomes) > 1:
        head += ["dB above the last", "to 30 dB, in parts of the last's time to its best"]
    for text, column in outcomes.items():
        quality = [outcome.quality for outcome in column]
        row = [f"`{text}`", *(f"{pick(quality):.1f}" for pick in (statistics.median, min, max))]
        row += [
            f"{sum(values)} of {len(column)}"
            for values in (
                [outcome.quality >= 30 for outcome in column],
                [outcome.of_any >= 30 for outcome in column],
                [outcome.quality >= 45 for outcome in column],
                [outcome.labels for outcome in column],
            )
        ]
        row += [
            f"{statistics.median(values):.1f}"
            for values in (
                [outcome.seconds for outcome in column],
                [outcome.to_30 for outcome in column],
                [outcome.to_best for outcome in column],
            )
        ]
        if len(outcomes) > 1:
            pairs = list(zip(column, last, strict=True))
            above = [one.quality - other.quality for one, other in pairs]
            parts = [one.to_30 / other.to_best for one, other in pairs]
            row.append(f"{statistics.median(above):+.1f}")
            row.append(f"{statistics.median(parts):.3f}, at most {max(parts):.3f}")
        rows.append([cell.replace("inf", "never") for cell in row])
    return markdown(head, rows)


def _attacked(
    attack: Attack, observation: Observation, truth: Tensor, labels: Tensor, seed: int
) -> Outcome:
    path: list[tuple[float, float]] = []
    last: list[Best] = []
    begun = time.perf_counter()

    def seen(best: Best) -> None:
        # Looking at the candidate costs a little time, which is counted.
        chosen = best.inputs[best.objective.argmin()]
        path.append((time.perf_counter() - begun, _quality(chosen, truth, labels)))
        last[:] = [best]

    with _watched(seen):
        found = attack.reconstruct(observation, seed)
    seconds = time.perf_counter() - begun
    quality = _quality(found.inputs, truth, labels)
    restarts = last[0].inputs if last else found.inputs[None]
    best = max((reached for _, reached in path), default=quality)
    known = found.labels is not None and torch.equal(found.labels.sort()[0], labels.sort()[0])
    return Outcome(
        quality,
        of_any=max(_quality(inputs, truth, labels) for inputs in restarts),
        labels=known,
        seconds=seconds,
        to_30=next((at for at, reached in path if reached >= 30), NEVER),
        to_best=next((at for at, reached in path if reached >= best - 0.1), seconds),
    )


@contextmanager
def _watched(seen: Callable[[Best], None]) -> Iterator[None]:
    """Let ``seen`` look at the best candidates whenever an attack updates them."""
    update = Best.update

    def updated(self: Best, *arguments: Any) -> None:
        update(self, *arguments)
        seen(self)

    Best.update = updated  # type: ignore[method-assign]
    try:
        yield
    finally:
        Best.update = update  # type: ignore[method-assign]


def _observe(model: nn.Module, inputs: Tensor, labels: Tensor, facts: TrainingFacts) -> Observation:
    """Local SGD in float32, as the central party sees it."""
    model.train(facts.train_mode)
    sent = {name: value.detach().clone() for name, value in model.named_parameters()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    optimiser = torch.optim.SGD(model.parameters(), facts.lr)
    for batch in batches(facts):
        optimiser.zero_grad()
        functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimiser.step()
    update = {
        name: ((sent[name].double() - value.detach().double()) / facts.lr).float()
        for name, value in model.named_parameters()
    }
    return Observation(
        model=model,
        parameters=sent,
        buffers=buffers,
        update=update,
        facts=facts,
        input_shape=SHAPE,
        classes=CLASSES,
        # For attacks that are asked to take them as known; none does so by itself.
        labels=labels,
    )


def _clients(clients: int, images: int) -> Iterator[tuple[Tensor, Tensor]]:
    folder = os.environ.get("FEDLEAK_DATA")
    if not folder:
        raise SystemExit("set FEDLEAK_DATA to the folder that holds cifar10/")
    (file,) = (Path(folder) / "cifar10").glob("*.npz")
    data = np.load(file)
    inputs = torch.from_numpy(data["x_test"][: clients * images]).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(data["y_test"][: clients * images]).long()
    return zip(inputs.split(images), labels.split(images), strict=True)


def _quality(found: Tensor, truth: Tensor, labels: Tensor) -> float:
    """Mean PSNR in dB, each image beside the one that it is taken for."""
    found = found.clamp(0, 1)
    if len(truth) > 1:
        matches = match(Reconstruction(found, None, labels), Truth(truth.numpy(), labels.numpy()))
        found = found[torch.from_numpy(matches)]
    squares = (found - truth).double().square().flatten(1).mean(1)
    return float((-10 * squares.log10()).mean())


def _made(kinds: Any, text: str) -> Any:
    """The component that ``"KIND NAME=VALUE ..."`` describes."""
    kind, *settings = text.split()
    found = {made.kind_name(): made for made in kinds}
    if kind not in found:
        raise SystemExit(f"{kind!r} is not one of {', '.join(found)}")
    return found[kind].model_validate(dict(setting.split("=", 1) for setting in settings))


if __name__ == "__main__":
    main()
