"""Advice: which layers leak most, and what protecting them would give and cost."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clients.defenses import DEFENSES
from fedleak.attacks import GS
from fedleak.attacks.optimisation import OptimisationAttack
from fedleak.auditor import Subject, audit, subject_of_scenario
from fedleak.auditor.executors import OnStep
from fedleak.auditor.observe import observe
from fedleak.captures import CaptureStore, RunLayout, StudyLayout
from fedleak.errors import Problem, ResourceError, ScenarioError
from fedleak.measures import JacobianSensitivity
from fedleak.measures.layers import layers_of
from fedleak.reporting.layers import MeasuredRow, measured_rows
from fedleak.reporting.results import RECONSTRUCTED_DB, RECONSTRUCTED_TOKENS, read_results
from fedleak.reporting.study import read_study
from fedleak.scenario import Scenario, load_scenario
from fedleak.scenario.study import study_from
from fedleak.studies.running import OnRun, resume, run_study

_RANKED_BY = ("usable-original-50", "usable-latent", "jacobian-f-norm-relative")
"""What says how much a layer leaks, the most telling first."""
_SHARE = 0.5
"""A layer leaks that has at least this share of the most that any layer has."""
_STRENGTHS = (0.1, 1.0, 10.0)
"""Standard deviations of noise, in units of the protected update's root mean square."""
_PRUNED = 0.9
_SEARCH = GS(restarts=1, iterations=300)
_ADDED = (
    "The scenario's attacks need exact updates, and any noise stops them; `gs`, which bears noise, "
    "attacked as well."
)
_CHANCE = 1.5
"""Up to so many times the accuracy of guessing a model has learnt too little to lose any."""


@dataclass(frozen=True)
class Protected:
    """What one protection gave.

    Attributes:
        name: The protection in words.
        defenses: Its entries for ``client.defenses``; empty for none.
        leak: Mean PSNR in dB, or share of right tokens, by the attack that got most; None
            where the attacks found nothing.
        accuracy: Of the global model after the last round; None where it is not evaluated.
    """

    name: str
    defenses: tuple[Mapping[str, Any], ...]
    leak: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Advice:
    """Where a run leaks and what helps.

    Attributes:
        metric: What layers are ranked by.
        ranking: Value by layer, the greatest first.
        layers: Those that leak most.
        protections: What was tried; the first is what the run has already.
        best: The cheapest that hides the samples, or else the one that hides most.
        hides: Whether with ``best`` samples no longer count as reconstructed.
        needed: Whether they count as reconstructed as it is.
        at_chance: Whether the model is no better than chance, so that what a protection costs
            in accuracy cannot be seen.
        of_texts: Whether ``leak`` is a share of right tokens.
        study: Directory of the study that tried them.
        notes: What a reader must know beside that.
    """

    metric: str
    ranking: Mapping[str, float]
    layers: tuple[str, ...]
    protections: tuple[Protected, ...]
    best: Protected
    hides: bool
    needed: bool
    at_chance: bool
    of_texts: bool
    study: Path
    notes: tuple[str, ...]


def advise(
    directory: str | Path, *, on_step: OnStep | None = None, on_run: OnRun | None = None
) -> Advice:
    """Rank a run's layers by what they leak, then try protections of the worst.

    Layers are ranked by what the run's measures gave; where none has layers, the relative
    Jacobian norm is measured. Each protection is a run of the same scenario with a defense
    added: noise on the leaking layers and, to compare, on all; pruning and withholding the
    leaking layers. Where a protection holds entries back, attacks also run with `mask_zeros`,
    and the better one counts: a defense that a mask beats is none. Where no attack of the
    scenario searches for samples, which is what bears noise, `gs` is added. They are runs of a
    study inside the run directory and are kept.

    Args:
        directory: An audited run.
        on_step: Called now and then while layers are measured.
        on_run: Called before the first and after each run.

    Raises:
        ResourceError: There is no such run, or it has not been audited.
        ScenarioError: It has no scenario, or the scenario has no attack.
    """
    layout = RunLayout(Path(directory))
    if StudyLayout(layout.root).exists:
        raise ResourceError(
            f"{layout.root} is a study; give one of its runs, for example "
            f"{layout.root}/cells/CELL/repeat-0"
        )
    if not layout.root.is_dir():
        raise ResourceError(f"there is no run directory {layout.root}")
    if not layout.scenario.exists():
        raise ScenarioError(
            Problem(
                "",
                f"{layout.root} has no scenario.toml: protections are tried by running the "
                "federation again, which only a scenario can say how",
            )
        )
    scenario = load_scenario(layout.scenario)
    if not scenario.audit.attacks:
        raise ScenarioError(
            Problem("audit.attacks", "no attack would show what a protection is worth; name one")
        )
    subject = subject_of_scenario(scenario)
    metric, ranking = _ranking(layout, on_step)
    layers = tuple(layer for layer, v in ranking.items() if v >= _SHARE * max(ranking.values()))
    options = _options(layers, _root_mean_square(layout, subject, layers))
    searching = _searching(scenario, subject)
    study = _try(layout, scenario, options, searching, on_run)
    results = read_study(study)
    leak_metric = "token-accuracy" if subject.vocabulary else "psnr"
    found: dict[str, dict[str, list[float]]] = {name: {} for name in options}
    # First every protection, then again those that attacks can mask.
    names = [*options, *(name for name, added in options.items() if _holds_back(added))]
    for cell, name in zip(results.cells, names, strict=False):
        for value in results.overall:
            if value.cell == cell.name and value.aggregate == "mean":
                found[name].setdefault(value.metric, []).append(value.mean)
    tried = [
        Protected(
            name,
            defenses,
            leak=max(found[name].get(leak_metric, []), default=None),
            accuracy=max(found[name].get("accuracy", []), default=None),
        )
        for name, defenses in options.items()
    ]
    bar = RECONSTRUCTED_DB if leak_metric == "psnr" else RECONSTRUCTED_TOKENS
    before = tried[0]
    hidden = [each for each in tried[1:] if each.leak is None or each.leak < bar]
    return Advice(
        metric=metric,
        ranking=ranking,
        layers=layers,
        protections=tuple(tried),
        best=max(hidden, key=_worth) if hidden else min(tried[1:], key=_leak),
        hides=bool(hidden),
        needed=before.leak is not None and before.leak >= bar,
        at_chance=before.accuracy is not None and before.accuracy <= _CHANCE / subject.classes,
        of_texts=leak_metric != "psnr",
        study=study,
        notes=(*([_ADDED] if searching else []), *results.notes),
    )


def _searching(scenario: Scenario, subject: Subject) -> list[dict[str, Any]]:
    """An attack that bears noise, if the scenario has none and this one can work."""
    there = any(isinstance(attack, OptimisationAttack) for attack in scenario.audit.attacks)
    if there or subject.vocabulary:
        return []
    return [_SEARCH.model_dump(mode="json", exclude_none=True)]


def _worth(tried: Protected) -> tuple[float, float]:
    return (-math.inf if tried.accuracy is None else tried.accuracy), -_leak(tried)


def _leak(tried: Protected) -> float:
    return -math.inf if tried.leak is None else tried.leak


def _ranking(layout: RunLayout, on_step: OnStep | None) -> tuple[str, dict[str, float]]:
    rows = measured_rows(read_results(layout.root))
    if not any(_ranks(row) for row in rows):
        audit(
            layout.root,
            attacks=[],
            measures=[JacobianSensitivity()],
            recorded=True,
            on_step=on_step,
        )
        rows = measured_rows(read_results(layout.root))
    metric = next((name for name in _RANKED_BY if any(_ranks(r, name) for r in rows)), None)
    if metric is None:
        raise ScenarioError(
            Problem(
                "audit.measures",
                "no measure has layers here; add one that works for this model and data, "
                'for example kind = "usable-latent"',
            )
        )
    values: dict[str, float] = {}
    for row in rows:
        if _ranks(row, metric):
            # A set of layers says of each of them that it may be the one.
            for layer in str(row.layer).split("+"):
                values[layer] = max(values.get(layer, 0.0), row.value)
    return metric, dict(sorted(values.items(), key=lambda item: -item[1]))


def _ranks(row: MeasuredRow, metric: str | None = None) -> bool:
    named = row.metric in _RANKED_BY if metric is None else row.metric == metric
    return named and row.layer is not None and math.isfinite(row.value)


def _root_mean_square(layout: RunLayout, subject: Subject, layers: Sequence[str]) -> float:
    """Of the entries of those layers' updates, over all clients of the first round."""
    store = CaptureStore(layout.root)
    number = store.rounds()[0]
    entries = []
    for client in store.clients(number):
        update = observe(store.load(number, client), subject).update
        names = layers_of(update)
        entries += [update[name].flatten() for layer in layers for name in names[layer]]
    return float(torch.cat(entries).square().mean().sqrt())


def _options(layers: Sequence[str], size: float) -> dict[str, tuple[Mapping[str, Any], ...]]:
    """Protections by their names; the first is none."""
    where = ", ".join(layers)
    options: dict[str, tuple[Mapping[str, Any], ...]] = {"as it is": ()}
    for strength in _STRENGTHS:
        noise = {"kind": "update-noise", "scale": float(f"{strength * size:.3g}")}
        options[f"noise {noise['scale']:g} on {where}"] = ({**noise, "layers": list(layers)},)
        options[f"noise {noise['scale']:g} on all layers"] = (noise,)
    prune = {"kind": "gradient-pruning", "rate": _PRUNED, "layers": list(layers)}
    options[f"{_PRUNED:.0%} of {where} pruned"] = (prune,)
    options[f"{where} withheld"] = ({"kind": "withhold", "layers": list(layers)},)
    return options


def _holds_back(added: Sequence[Mapping[str, Any]]) -> bool:
    known = {defense.kind_name(): defense for defense in DEFENSES}
    return any(known[entry["kind"]].holds_back for entry in added)


def _try(
    layout: RunLayout,
    scenario: Scenario,
    options: Mapping[str, Sequence[Mapping[str, Any]]],
    searching: Sequence[Mapping[str, Any]],
    on_run: OnRun | None,
) -> Path:
    """The directory of the finished study of all protections."""
    document = scenario.model_dump(mode="json", exclude_none=True, exclude={"expect"})
    there = document["client"].pop("defenses")
    document["audit"]["measures"] = []
    document["audit"]["attacks"] += searching
    # A defense that already acts stays, unless it must not stand there twice.
    defended = {
        name: [*(d for d in there if d["kind"] not in {o["kind"] for o in added}), *added]
        for name, added in options.items()
    }
    document["matrix"] = [{"client.defenses": list(defended.values())}]
    masked = [
        {**attack, "mask_zeros": True} if "mask_zeros" in attack else attack
        for attack in document["audit"]["attacks"]
    ]
    # Where a scenario has an attack without the mask and with it, they become the same.
    masked = [attack for place, attack in enumerate(masked) if attack not in masked[:place]]
    if masked != document["audit"]["attacks"]:
        document["matrix"].append(
            {
                "client.defenses": [
                    defended[name] for name, added in options.items() if _holds_back(added)
                ],
                "audit.attacks": [masked],
            }
        )
    digest = hashlib.sha256(json.dumps(document).encode()).hexdigest()[:6]
    place = layout.root / f"advice-{digest}"
    if StudyLayout(place).exists:
        return resume(place, on_run)
    if place.exists():
        raise ResourceError(f"{place} exists and is no study; remove it")
    return run_study(study_from(document), directory=place, on_run=on_run)
