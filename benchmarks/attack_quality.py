"""How well, and how fast, each optimisation attack reconstructs CIFAR-10 test images.

One client trains one step of SGD on one image; what travels are float32 parameters.
For each attack: PSNR of what it returns, its time, and the time at which the candidate
it would return passed 30 dB and came within 0.1 dB of the attack's own best. Needs the
environment variable FEDLEAK_DATA, a folder that holds cifar10/*.npz; no network.

    python benchmarks/attack_quality.py --images 20 --attacks gauss-newton,gs,dlg
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks import ATTACKS, Attack
from fedleak.attacks.optimisation import Best
from fedleak.models import INITS, MODELS, build
from fedleak.records import Observation, TrainingFacts

SHAPE, CLASSES = (3, 32, 32), 10


def main() -> None:
    """Run the attacks that are asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=20, help="the first ones of the test set")
    parser.add_argument("--attacks", default="gauss-newton,gs,idlg,dlg")
    parser.add_argument("--model", default="lenet-dlg", help="kind of model")
    parser.add_argument("--init", default="default", help="kind of initial weights")
    parser.add_argument("--lr", type=float, default=0.1, help="the client's learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the attacks")
    parser.add_argument(
        "--set", action="append", default=[], help="gs.iterations=4800, model.pooling=average"
    )
    parser.add_argument("--each", action="store_true", help="print every image's figures as well")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    settings = _settings(asked.set)
    inputs, labels = _images(asked.images)
    model = _made(MODELS, asked.model, settings)
    init = _made(INITS, asked.init, settings)
    print(f"{asked.model}, {asked.init} weights, lr {asked.lr:g}, {asked.images} images, batch 1")
    print("attack        median dB   min   max  >=30 dB  >=45 dB  seconds  to 30 dB  to its best")
    for kind in asked.attacks.split(","):
        attack = _made(ATTACKS, kind, settings)
        rows = []
        for i in range(asked.images):
            network = build(model, init, SHAPE, CLASSES, asked.seed)
            observation = _observe(network, inputs[i : i + 1], labels[i : i + 1], asked.lr)
            rows.append(_attacked(attack, observation, inputs[i], asked.seed))
            if asked.each:
                print(f"  {kind} image {i}: " + "  ".join(f"{figure:.1f}" for figure in rows[-1]))
        quality, seconds, to_30, to_best = (list(column) for column in zip(*rows, strict=True))
        print(
            f"{kind:13s} {statistics.median(quality):9.1f} {min(quality):5.1f} {max(quality):5.1f}"
            f" {sum(q >= 30 for q in quality):8d} {sum(q >= 45 for q in quality):8d}"
            f" {statistics.median(seconds):8.1f} {statistics.median(to_30):9.1f}"
            f" {statistics.median(to_best):12.1f}",
            flush=True,
        )


def _attacked(
    attack: Attack, observation: Observation, truth: Tensor, seed: int
) -> tuple[float, float, float, float]:
    """PSNR in dB, seconds, seconds to 30 dB (infinite if never) and to the best less 0.1 dB."""
    path: list[tuple[float, float]] = []
    begun = time.perf_counter()

    def seen(best: Best) -> None:
        # Reading the candidate costs a little time, which is counted.
        image = best.inputs[best.objective.argmin(), 0].clamp(0, 1)
        path.append((time.perf_counter() - begun, _psnr(image, truth)))

    with _watched(seen):
        found = attack.reconstruct(observation, seed)
    seconds = time.perf_counter() - begun
    quality = _psnr(found.inputs[0], truth) if len(found.inputs) else 0.0
    best = max((reached for _, reached in path), default=quality)
    to_30 = next((at for at, reached in path if reached >= 30), float("inf"))
    to_best = next((at for at, reached in path if reached >= best - 0.1), seconds)
    return quality, seconds, to_30, to_best


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


def _observe(model: nn.Module, inputs: Tensor, labels: Tensor, lr: float) -> Observation:
    """One step of SGD in float32, as the central party sees it."""
    sent = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr)
    functional.cross_entropy(model(inputs), labels).backward()
    optimiser.step()
    update = {
        name: ((sent[name].double() - value.detach().double()) / lr).float()
        for name, value in model.named_parameters()
    }
    return Observation(
        model=model,
        parameters=sent,
        buffers={name: value.clone() for name, value in model.named_buffers()},
        update=update,
        facts=TrainingFacts(lr, 1, len(inputs), len(inputs)),
        input_shape=SHAPE,
        classes=CLASSES,
    )


def _images(count: int) -> tuple[Tensor, Tensor]:
    folder = os.environ.get("FEDLEAK_DATA")
    if not folder:
        raise SystemExit("set FEDLEAK_DATA to the folder that holds cifar10/")
    (file,) = (Path(folder) / "cifar10").glob("*.npz")
    data = np.load(file)
    inputs = torch.from_numpy(data["x_test"][:count]).permute(0, 3, 1, 2).float() / 255
    return inputs, torch.from_numpy(data["y_test"][:count]).long()


def _psnr(found: Tensor, truth: Tensor) -> float:
    return float(-10 * (found - truth).double().square().mean().log10())


def _settings(given: list[str]) -> dict[str, dict[str, str]]:
    """``gs.iterations=4800`` as ``{"gs": {"iterations": "4800"}}``."""
    settings: dict[str, dict[str, str]] = {}
    for setting in given:
        key, _, value = setting.partition("=")
        kind, _, name = key.rpartition(".")
        settings.setdefault(kind, {})[name] = value
    return settings


def _made(kinds: Any, kind: str, settings: dict[str, dict[str, str]]) -> Any:
    """The component of a kind with its settings; a model's are named ``model.pooling``."""
    found = {made.kind_name(): made for made in kinds}
    if kind not in found:
        raise SystemExit(f"{kind!r} is not one of {', '.join(found)}")
    given = settings.get("model" if kinds is MODELS else kind, {})
    return found[kind].model_validate(given)


if __name__ == "__main__":
    main()
