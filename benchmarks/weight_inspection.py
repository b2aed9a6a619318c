"""How often `weight-inspection` detects trap weights, and how often it accuses honest models.

    python benchmarks/weight_inspection.py

Honest models are fresh, trained in a federation on MNIST (as sent in the last round, with the
round before to compare to), and those pruned by magnitude over the whole model in every
round. Traps, plain and hidden, are set on the fresh and on the trained model. An ``evasive``
one knows the inspection: the signs of its rows are drawn independently, their spread is that
of fresh weights, and kernels that pass the sample on are filled up with small weights. How
much it still extracts is not measured here. Rates are shares of the seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from flwr.app import RecordDict
from tables import markdown, write
from torch import Tensor, nn

from clients.defenses import Turn, WeightInspection
from fedleak import load_scenario, run
from fedleak.captures import CaptureStore
from fedleak.scenario import Prepared, prepare
from fedleak.traps import set_trap, trapped_layer

MODELS = {
    "dense": ({"kind": "mlp", "hidden": [1000, 200]}, 0.7),
    "convolutional": ({"kind": "boenisch-cnn", "channels": [8, 16], "width": 200}, 0.7),
}
MARKS = ("balance", "negative", "one-hot", "duplicates", "fresh", "last")
PRUNED = (0.5, 0.8, 0.95)

Weights = Mapping[str, Tensor]
Case = tuple[str, Weights, Weights | None]


def cases(prepared: Prepared, rounds: list[Weights], scaling: float) -> Iterator[Case]:
    """By name, the weights that come in and those that came in the round before."""
    fresh, before, trained = rounds[0], rounds[-2], rounds[-1]
    yield "honest, fresh", fresh, None
    yield "honest, trained", trained, before
    for rate in PRUNED:
        yield f"honest, fresh, {rate:.0%} pruned", pruned(fresh, rate), None
        yield f"honest, trained, {rate:.0%} pruned", pruned(trained, rate), pruned(before, rate)
    for hidden in (False, True):
        kind = "hidden" if hidden else "plain"
        yield f"trap, {kind}, fresh", trap(prepared, fresh, scaling, hidden), None
        yield f"trap, {kind}, trained", trap(prepared, trained, scaling, hidden), before
    yield "trap, evasive, fresh", evasive(prepared, fresh, scaling), None
    yield "trap, evasive, trained", evasive(prepared, trained, scaling), before


def pruned(weights: Weights, rate: float) -> Weights:
    """Zero the smallest share of all weights of dense layers and convolutions."""
    sizes = torch.cat([w.abs().flatten() for w in weights.values() if w.dim() > 1])
    least = float(np.quantile(sizes.numpy(), rate))
    return {
        name: torch.where(w.abs() <= least, 0.0, w) if w.dim() > 1 else w
        for name, w in weights.items()
    }


def trap(prepared: Prepared, weights: Weights, scaling: float, hidden: bool) -> Weights:
    """Trap weights as the malicious party sends them."""
    made = set_trap(
        prepared.model(),
        dict(weights),
        True,
        prepared.splits.train.input_shape,
        scaling=scaling,
        sigma=1e-3,
        rng=np.random.default_rng(prepared.scenario.seed),
        hidden=hidden,
    )
    return {**weights, **made}


def evasive(prepared: Prepared, weights: Weights, scaling: float) -> Weights:
    """A hidden trap with marks taken off that an attacker can take off."""
    made = dict(trap(prepared, weights, scaling, hidden=True))
    name = f"{trapped_layer(prepared.model(), prepared.splits.train.input_shape)}.weight"
    rows, plain = made[name].clone(), weights[name]
    changed = rows != plain
    size = float(prepared.model().state_dict()[name].std())
    rng = torch.Generator().manual_seed(prepared.scenario.seed)
    drawn = -(torch.randn(rows.shape, generator=rng).abs() * size)
    positive = torch.rand(rows.shape, generator=rng) < 0.5
    made[name] = torch.where(changed, torch.where(positive, -scaling * drawn, drawn), rows)
    for kernel in (n for n, w in made.items() if w.dim() == 4):
        small = 1e-3 * torch.randn(made[kernel].shape, generator=rng)
        made[kernel] = torch.where(made[kernel] == 0, small, made[kernel])
    return made


def inspected(prepared: Prepared, came: Weights, before: Weights | None) -> Mapping[str, float]:
    """What a client reports that was sent these weights, after those of the round before."""
    defense, state = WeightInspection(), RecordDict()
    metrics: Mapping[str, float] = {}
    for round, weights in enumerate([came] if before is None else [before, came], start=1):
        model: nn.Module = prepared.model()
        model.load_state_dict(dict(weights))
        turn = Turn(
            seed=prepared.scenario.seed,
            client=0,
            round=round,
            rounds=2,
            facts=prepared.facts(0, 1),
            fresh=prepared.fresh,
            state=state,
            label=defense.kind,
        )
        metrics = defense.receive(model, turn)
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="models of each kind (default 10)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of training (default 10)")
    parser.add_argument("--threshold", type=float, default=0.9, help="default 0.9")
    parser.add_argument("--write", metavar="TABLE", help="put it into README.md as well")
    options = parser.parse_args()
    rows = []
    for title, (model, scaling) in MODELS.items():
        found: dict[str, list[Mapping[str, float]]] = defaultdict(list)
        for seed in range(options.seeds):
            scenario = load_scenario(
                {
                    "seed": seed,
                    "data": {"kind": "mnist-5k"},
                    "model": model,
                    "federation": {"rounds": options.rounds, "clients": 4, "evaluate": False},
                    "client": {"local_epochs": 1, "batch_size": 32, "lr": 0.1},
                }
            )
            prepared = prepare(scenario)
            with tempfile.TemporaryDirectory() as folder:
                store = CaptureStore(run(scenario, directory=Path(folder) / "run"))
                sent = [
                    {n: torch.from_numpy(a.copy()) for n, a in capture.sent.items()}
                    for capture in (store.load(r, "client-000") for r in store.rounds())
                ]
            for case, came, before in cases(prepared, sent, scaling):
                found[case].append(inspected(prepared, came, before))
        for case, marks in found.items():
            scores = [each["score"] for each in marks]
            above = np.mean([score > options.threshold for score in scores])
            rows.append(
                [
                    title,
                    case,
                    f"{above:.2f}",
                    f"{np.median(scores):.2f} ({min(scores):.2f}-{max(scores):.2f})",
                    *(f"{np.median([each[mark] for each in marks]):.2f}" for mark in MARKS),
                ]
            )
    head = ["model", "weights", f"refused at {options.threshold:g}", "score", *MARKS]
    table = markdown(head, rows)
    print(table)
    if options.write:
        write(options.write, table)


if __name__ == "__main__":
    main()
