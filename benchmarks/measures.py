"""What the measures made of derivatives cost, in evaluations of one gradient.

Jacobian norms of one CIFAR-10-sized image, all layers, against the loop over the entries of
the gradient, a double backward each: that loop is timed on entries drawn evenly from each
parameter, a few in a hundred of all, and scaled. The lower bound of I2F of one image, its
linearisation included, against gradients of the same precision. A gradient is one image's,
by `torch.autograd.grad`. Times alternate, and the medians' ratio is printed: absolute times say
more about the machine than about the code. Memory is the most that a process of its own took,
PyTorch included.

    OMP_NUM_THREADS=1 python benchmarks/measures.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from tables import markdown, write
from torch import Tensor, nn
from torch.nn import functional

from fedleak.gradients import Curvature, UpdateMap
from fedleak.measures.jacobian_sensitivity import jacobian_norms
from fedleak.measures.layers import layers_of
from fedleak.models.lenet import LeNet, LeNetDlg
from fedleak.models.resnet18 import ResNet18
from fedleak.records import TrainingFacts

SHAPE, CLASSES = (3, 32, 32), 10
PIXELS = 3072
FACTS = TrainingFacts(0.1, 1, 1, 1, train_mode=False)


def case(model: nn.Module, double: bool = False) -> tuple[nn.Module, UpdateMap, Tensor, Tensor]:
    """A model, its update map, one image and its label."""
    model = (model.double() if double else model).eval()
    mapping = UpdateMap(model, dict(model.named_parameters()), dict(model.named_buffers()), FACTS)
    like = next(model.parameters())
    return model, mapping, torch.rand(1, *SHAPE).to(like.dtype), torch.tensor([3])


def gradients(model: nn.Module, image: Tensor, label: Tensor, count: int) -> Callable[[], None]:
    parameters = list(model.parameters())

    def work() -> None:
        for _ in range(count):
            torch.autograd.grad(functional.cross_entropy(model(image), label), parameters)

    return work


def loop(
    model: nn.Module, image: Tensor, label: Tensor, every: int
) -> tuple[Callable[[], None], float]:
    """One double backward for each entry of the gradient, of which it takes a part."""
    at = image.clone().requires_grad_()
    loss = functional.cross_entropy(model(at), label)
    parts = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    chosen = [entry for part in parts for entry in part.flatten()[::every]]
    total = sum(part.numel() for part in parts)

    def work() -> None:
        for entry in chosen:
            torch.autograd.grad(entry, at, retain_graph=True)

    return work, total / len(chosen)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def medians(rounds: int, *works: Callable[[], object]) -> Iterator[float]:
    """Of each work's times, taken by turns."""
    for work in works:
        work()
    times = [[seconds(work) for work in works] for _ in range(rounds)]
    return (statistics.median(each) for each in zip(*times, strict=True))


def sensitivity(rounds: int, every: int) -> Iterator[list[str]]:
    model, mapping, image, label = case(LeNet().build(SHAPE, CLASSES))
    layers = layers_of(mapping.layers)
    over_entries, share = loop(model, image, label, every)
    ours, entries, plain = medians(
        rounds,
        lambda: jacobian_norms(mapping.jacobian(image, label, 0), layers),
        over_entries,
        gradients(model, image, label, PIXELS // 16),
    )
    looped, plain = share * entries, 16 * plain
    yield ["Jacobian norms, LeNet", "over the loop", f"{looped / ours:.1f}x", ">= 20x"]
    yield ["Jacobian norms, LeNet", "3072 gradients", f"{ours / plain:.2f}x", "<= 2x"]


def bound(rounds: int, name: str, network: nn.Module) -> Iterator[list[str]]:
    model, mapping, image, label = case(network, double=True)
    noise = {key: torch.randn_like(value) for key, value in model.named_parameters()}
    products = 0

    class Counted(Curvature):
        def __matmul__(self, values: Tensor) -> Tensor:
            nonlocal products
            products += 1
            return super().__matmul__(values)

    def work() -> float:
        nonlocal products
        products = 0
        curvature = Counted(mapping, image, label)
        return float(curvature.pull(noise).norm()) / curvature.largest(seed=0)

    ours, plain = medians(rounds, work, gradients(model, image, label, 20))
    equal = f"{20 * ours / plain:.0f}"
    yield [f"I2F lower bound, {name}", f"gradients, {products} products", equal, "<= 100"]


def peak(connection: object, what: str) -> None:
    """Do one thing in a process of its own, and tell the most memory that it held."""
    _, mapping, image, label = case(ResNet18().build(SHAPE, CLASSES), double=what == "bound")
    if what == "bound":
        Curvature(mapping, image, label).largest(seed=0)
    else:
        columns = mapping.jacobian(image, label, 0)
        jacobian_norms((next(columns) for _ in range(4)), layers_of(mapping.layers))
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    connection.send(taken / 2**20)  # type: ignore[attr-defined]


def memory() -> Iterator[list[str]]:
    context = multiprocessing.get_context("spawn")
    for what, name in (("norms", "Jacobian norms"), ("bound", "I2F lower bound")):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=peak, args=(sender, what))
        process.start()
        taken = receiver.recv()
        process.join()
        yield [f"{name}, ResNet-18", "memory", f"{taken:.2f} GiB", "< 1.86 GiB"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="timings of each, by turns")
    parser.add_argument("--every", type=int, default=200, help="entries of which the loop does one")
    parser.add_argument("--write", metavar="TABLE", help="put it into README.md as well")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}\n")
    rows = []

    def take(more: Iterator[list[str]]) -> None:
        for row in more:
            rows.append(row)
            print(*row, sep="  ", file=sys.stderr, flush=True)

    take(memory())
    take(sensitivity(options.rounds, options.every))
    take(bound(options.rounds, "LeNet", LeNet().build(SHAPE, CLASSES)))
    take(bound(options.rounds, "LeNet of DLG", LeNetDlg().build(SHAPE, CLASSES)))
    table = markdown(["what", "against", "measured", "bar"], rows)
    print(table)
    if options.write:
        write(options.write, table)


if __name__ == "__main__":
    main()
