"""From the scores of a study's runs to one table, and the published values beside it.

The scores of all samples of a run become one value: their mean, median, least and
greatest. These values of a cell's repeats become a mean, a sample standard deviation
and a 95 % confidence interval of the mean (Student's t over repeats). The repeats are
the independent draws, the samples of one run are not: they share a model.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedleak.attacks import ATTACKS, Attack
from fedleak.auditor.cells import Cell, Outcome, finished
from fedleak.auditor.notes import read_notes
from fedleak.captures import RunLayout, StudyLayout, write_atomic
from fedleak.components import Component
from fedleak.errors import CaptureError
from fedleak.measures import MEASURES
from fedleak.scenario import Claim, Scenario, Study, StudyCell, load_study
from fedleak.scenario.expectations import (
    AGGREGATES,
    IN_STUDIES,
    MODEL_METRICS,
    TIME,
    Aggregate,
    Expectation,
    aggregated,
    meets,
    needs_audit,
    reported_by,
)
from fedleak.scenario.matrix import label

CONFIDENCE = 0.95
AGGREGATION = (
    "The scores of all samples of a run become one value (their mean, median, least or "
    "greatest); mean, standard deviation and 95 % interval (Student's t) are over the repeats."
)


@dataclass(frozen=True)
class Measured:
    """One value of a cell.

    Attributes:
        cell: The cell's name.
        attack: The attack or measure, or None for what the central party measures itself.
            What was added to a run with parameters of its own bears these: ``gs
            iterations=2``.
        metric: The score's name.
        layer: The layer, or None for what belongs to no layer.
        round: The round, or None for the whole run: scores of all rounds, the global model
            after the last one, each client's last round. Runs of a single round have no rows of it.
        aggregate: How the samples of a run became one value.
        repeats: Runs that have the value.
        samples: Scores of samples behind it, over all of them.
        mean: Over repeats.
        sd: Sample standard deviation over repeats (n - 1); None for a single repeat.
        low: Lower end of the mean's 95 % interval; of a single repeat the measure's own, where
            it has one, else None.
        high: Upper end.
    """

    cell: str
    attack: str | None
    metric: str
    layer: str | None
    round: int | None
    aggregate: Aggregate
    repeats: int
    samples: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


_Key = tuple[str | None, str, str | None, int | None]
"""Attack or measure, metric, layer, round."""


@dataclass(frozen=True)
class _Run:
    """What one finished run gave: values by key, and which attacks came to nothing.

    Where a measure gave a single value with a 95 % interval of its own, that is kept.
    """

    scores: Mapping[_Key, Sequence[float]]
    intervals: Mapping[_Key, tuple[float, float]]
    troubles: Counter[tuple[str, str, str]]
    notes: tuple[str, ...]


_Runs = Mapping[str, Mapping[int, _Run]]
"""Finished runs by cell and repeat."""


def aggregate(directory: str | Path) -> tuple[Measured, ...]:
    """Aggregate what a study's finished runs gave; writes ``study.parquet`` and ``study.json``.

    Args:
        directory: The study's directory; runs may still be missing.

    Raises:
        CaptureError: The results of a run are damaged.
    """
    layout = StudyLayout(Path(directory))
    study = load_study(layout.scenario)
    outcomes = {cell.name: _outcomes(layout, study, cell) for cell in study.cells}
    runs = {
        cell.name: {
            outcome["repeat"]: _read_run(layout.run(cell.name, outcome["repeat"]), cell.scenario)
            for outcome in outcomes[cell.name]
            if outcome["status"] == "done"
        }
        for cell in study.cells
    }
    rows = tuple(row for cell in study.cells for row in _rows(cell.name, runs[cell.name]))
    _write_table(layout, study, rows)
    summary = {
        "name": study.name,
        "keys": study.keys,
        "repeats": study.repeats,
        "aggregation": AGGREGATION,
        "cells": [
            {
                "name": cell.name,
                "settings": {key: label(value) for key, value in cell.settings.items()},
                "runs": outcomes[cell.name],
                "troubles": _troubles(runs[cell.name].values()),
            }
            for cell in study.cells
        ],
        "expectations": [_verdict(claim, study, runs) for claim in study.claims],
        "notes": list(
            dict.fromkeys(n for each in runs.values() for r in each.values() for n in r.notes)
        ),
    }
    write_atomic(layout.summary, json.dumps(summary, indent=1).encode())
    return rows


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean of independent draws (Student's t).

    Returns:
        None for fewer than two values, or where one is not finite.
    """
    # scipy.stats takes a while to import.
    from scipy import stats

    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    mean = float(np.mean(values))
    # scipy's own `sem` takes milliseconds a call, and there are thousands.
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    if error == 0:
        return mean, mean
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=mean, scale=error)
    return float(low), float(high)


def _outcomes(layout: StudyLayout, study: Study, cell: StudyCell) -> list[dict[str, Any]]:
    listed = []
    for repeat in range(study.repeats):
        try:
            outcome = json.loads(layout.outcome(cell.name, repeat).read_bytes())
        except (OSError, ValueError):
            outcome = {"status": "missing", "reason": "", "seconds": 0.0}
        listed.append({"repeat": repeat, **outcome})
    return listed


def _read_run(directory: Path, scenario: Scenario) -> _Run:
    layout = RunLayout(directory)
    scores: dict[_Key, list[float]] = defaultdict(list)
    troubles: Counter[tuple[str, str, str]] = Counter()
    granted = () if scenario.audit.known_labels else None
    # By what an attack and a measure are called together: one of each may have the same name.
    usual: dict[tuple[str | None, str | None], Mapping[str, Any]] = {}
    for attack_kind in ATTACKS:
        usual[attack_kind.kind_name(), None] = _defaults(attack_kind)
    for measure_kind in MEASURES:
        usual[None, measure_kind.kind_name()] = _defaults(measure_kind)
    for task in scenario.audit.tasks:
        if isinstance(task, Attack):
            usual[task.kind, None] = Cell(0, "", task, {}, granted).parameters
        else:
            usual[None, task.kind] = Cell(0, "", task, {}).parameters
    names: dict[str, str] = {}
    for outcome in finished(layout):
        attack = names[outcome.cell] = _told_apart(outcome, usual)
        if outcome.status == "done":
            for number in (None, outcome.round):
                scores[attack, TIME, None, number].append(outcome.seconds)
        else:
            troubles[attack, outcome.status, outcome.reason] += 1
    measured: dict[_Key, list[dict[str, Any]]] = defaultdict(list)
    for row in _read_scores(layout.results):
        if not math.isnan(row["value"]):
            attack = names[row["cell"]]
            for number in (None, row["round"]):
                key: _Key = (attack, row["metric"], row["layer"], number)
                if row.get("measure") is None:
                    scores[key].append(row["value"])
                else:
                    measured[key].append(row)
    intervals: dict[_Key, tuple[float, float]] = {}
    for key, rows in measured.items():
        # A value of all samples stands for those of single ones.
        whole = [row for row in rows if row["sample"] < 0] or rows
        scores[key] = [row["value"] for row in whole]
        if len(whole) == 1 and not math.isnan(whole[0]["low"]):
            intervals[key] = whole[0]["low"], whole[0]["high"]
    rounds = _rounds(layout)
    for number, metrics in _model_metrics(rounds).items():
        for metric in MODEL_METRICS:
            if metric in metrics:
                scores[None, metric, None, number].append(metrics[metric])
    last: dict[tuple[str, str], float] = {}
    for (client, metric, number), value in _client_metrics(rounds).items():
        scores[None, metric, None, number].append(value)
        last[client, metric] = value
    for (_, metric), value in last.items():
        scores[None, metric, None, None].append(value)
    return _Run(scores, intervals, troubles, read_notes(layout))


def _defaults(kind: type[Component]) -> dict[str, Any]:
    """Parameters that need not be given, with what they are then."""
    return kind.model_construct(kind=kind.kind_name()).model_dump(mode="json")


def _told_apart(
    outcome: Outcome, usual: Mapping[tuple[str | None, str | None], Mapping[str, Any]]
) -> str:
    """The attack or measure and, shortest first, the parameters in which it is not as usual."""
    kind = outcome.attack or outcome.measure or ""
    own = usual.get((outcome.attack, outcome.measure), {})
    told = [
        f"{name}={label(value)}"
        for name, value in outcome.parameters.items()
        if name not in own or own[name] != value
    ]
    return " ".join([kind, *sorted(told, key=len)])


def _read_scores(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []  # nothing was attacked
    try:
        table = pq.ParquetFile(path).read()
        # The ledgers of attacks that were written before there were measures lack these.
        later = [name for name in ("measure", "low", "high") if name in table.column_names]
        columns = ["cell", "round", "metric", "layer", "value", "sample", *later]
        rows: list[dict[str, Any]] = table.select(columns).to_pylist()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise CaptureError(f"{path} is damaged: {error}") from error
    return rows


def _rounds(layout: RunLayout) -> dict[int, Mapping[str, Any]]:
    """What the manifest says of each round, ascending."""
    try:
        rounds = json.loads(layout.manifest.read_bytes())["rounds"]
        return {number: rounds[str(number)] for number in sorted(map(int, rounds))}
    except (OSError, ValueError, KeyError) as error:
        raise CaptureError(f"{layout.manifest} is damaged: {error}") from error


def _model_metrics(
    rounds: Mapping[int, Mapping[str, Any]],
) -> Mapping[int | None, Mapping[str, float]]:
    """What the central party measured after each round; the last one stands for the run."""
    metrics: dict[int | None, Mapping[str, float]] = {
        number: told["metrics"] for number, told in rounds.items()
    }
    return {**metrics, None: metrics[max(rounds)]}


def _client_metrics(
    rounds: Mapping[int, Mapping[str, Any]],
) -> Mapping[tuple[str, str, int], float]:
    """What is known of clients, by client, metric and round: `CLIENT_METRICS`, and what their
    defenses report."""
    found: dict[tuple[str, str, int], float] = {}
    for number, told in rounds.items():
        for client, entry in told.get("clients", {}).items():
            reported = {
                name: value
                for name, value in entry.get("metrics", {}).items()
                if reported_by(name) is not None
            }
            sizes = [value for name, value in reported.items() if name.endswith("/bytes")]
            reported |= {"bytes-sent": min(sizes, default=entry["bytes"]), "refused": 0.0}
            if entry.get("seconds") is not None:
                reported["train-seconds"] = entry["seconds"]
            found |= {(client, name, number): value for name, value in reported.items()}
        found |= {(client, "refused", number): 1.0 for client in told.get("refused", {})}
    return found


def _rows(cell: str, runs: Mapping[int, _Run]) -> Iterator[Measured]:
    found = dict.fromkeys(key for run in runs.values() for key in run.scores)
    several = len({key[3] for key in found} - {None}) > 1
    for key in sorted(found, key=lambda key: key[3] or 0):
        if key[3] is not None and not several:
            continue
        scored = [run.scores[key] for run in runs.values() if key in run.scores]
        attack, metric, layer, number = key
        for how in AGGREGATES:
            values = [aggregated(scores, how) for scores in scored]
            between = interval(values)
            if len(runs) == 1:
                between = next(iter(runs.values())).intervals.get(key)
            yield Measured(
                cell=cell,
                attack=attack,
                metric=metric,
                layer=layer,
                round=number,
                aggregate=how,
                repeats=len(values),
                samples=sum(map(len, scored)),
                mean=float(np.mean(values)),
                sd=None if len(values) < 2 or between is None else float(np.std(values, ddof=1)),
                low=None if between is None else between[0],
                high=None if between is None else between[1],
            )


def _verdict(claim: Claim, study: Study, runs: _Runs) -> dict[str, Any]:
    """A published value beside what the cell's repeats gave on average."""
    expected = claim.expectation
    values = _claimed(expected, claim.cell, expected.layer, study, runs)
    others: list[tuple[str, str | None]] = []
    if expected.minus_layer is not None:
        others.append((claim.cell, expected.minus_layer))
    if claim.minus is not None:
        others.append((claim.minus, expected.layer))
    for cell, layer in others:
        other = _claimed(expected, cell, layer, study, runs)
        values = {repeat: values[repeat] - other[repeat] for repeat in values if repeat in other}
    measured = float(np.mean(list(values.values()))) if values else None
    between = interval(list(values.values()))
    if len(runs[claim.cell]) == 1 and not others:
        (run,) = runs[claim.cell].values()
        own = [
            run.intervals.get((task, expected.metric, expected.layer, expected.round))
            for task in _counted(expected, claim.cell, study)
        ]
        between = next(filter(None, own), None)
    return {
        **expected.model_dump(mode="json", exclude=IN_STUDIES),
        "cell": claim.cell,
        "minus": claim.minus,
        "measured": measured,
        "low": None if between is None else between[0],
        "high": None if between is None else between[1],
        "repeats": len(values),
        "met": meets(expected, measured),
    }


def _claimed(
    expectation: Expectation, cell: str, layer: str | None, study: Study, runs: _Runs
) -> dict[int, float]:
    """By repeat, the value of a cell in a layer that an expectation is about."""
    counted = _counted(expectation, cell, study)
    values = {}
    for repeat, run in runs[cell].items():
        scores = [
            value
            for attack in counted
            for value in run.scores.get((attack, expectation.metric, layer, expectation.round), ())
        ]
        if scores:
            values[repeat] = aggregated(scores, expectation.aggregate)
    return values


def _counted(expectation: Expectation, cell: str, study: Study) -> list[str | None]:
    """The attacks and measures whose values an expectation is about."""
    if not needs_audit(expectation.metric):
        return [None]
    if expectation.attack is not None:
        return [expectation.attack]
    (scenario,) = (each.scenario for each in study.cells if each.name == cell)
    # Without an attack named, all of the scenario's count; not those that were added later.
    return [*sorted({task.kind for task in scenario.audit.tasks})]


def _troubles(runs: Iterable[_Run]) -> list[dict[str, Any]]:
    counts = sum((run.troubles for run in runs), Counter[tuple[str, str, str]]())
    return [
        {"attack": attack, "status": status, "reason": reason, "cells": count}
        for (attack, status, reason), count in counts.most_common()
    ]


def _write_table(layout: StudyLayout, study: Study, rows: Sequence[Measured]) -> None:
    settings = {cell.name: cell.settings for cell in study.cells}
    columns: dict[str, list[float] | list[str | None]] = {}
    for key in study.keys:
        values = [settings[row.cell].get(key) for row in rows]
        numbers = [
            math.nan if value is None else float(value)
            for value in values
            if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
        ]
        # A column has one type: numbers, or else the words that stand in the tables.
        columns[key] = (
            numbers
            if len(numbers) == len(values)
            else [None if value is None else label(value) for value in values]
        )
    schema = pa.schema(
        [
            ("cell", pa.string()),
            ("attack", pa.string()),
            ("metric", pa.string()),
            ("layer", pa.string()),
            ("round", pa.int64()),
            ("aggregate", pa.string()),
            ("repeats", pa.int64()),
            ("samples", pa.int64()),
            *((name, pa.float64()) for name in ("mean", "sd", "low", "high")),
        ]
    )
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema)
    for position, (key, column) in enumerate(columns.items()):
        table = table.add_column(position, key, pa.array(column, from_pandas=True))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomic(layout.table, buffer.getvalue())
