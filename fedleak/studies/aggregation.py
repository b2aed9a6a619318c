"""From the scores of a study's runs to one table, and the published values beside it.

The scores of all samples of a run become one value: their mean, median, least and
greatest. These values of a cell's repeats become a mean, a sample standard deviation
and a 95 % confidence interval of the mean (Student's t over repeats). The repeats are
the independent draws, the samples of one run are not: they share a model. Where there is a
single repeat, a claim is weighed by the interval within the run (`fedleak.scenario.weighing`).
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedleak.attacks import ATTACKS, Attack
from fedleak.auditor.cells import Cell, finished
from fedleak.auditor.notes import read_notes
from fedleak.captures import RunLayout, StudyLayout, write_atomic
from fedleak.captures.ledger import read_ledger
from fedleak.components import Component
from fedleak.errors import CaptureError
from fedleak.measures import MEASURES
from fedleak.scenario import Claim, Scenario, Study, StudyCell, load_study
from fedleak.scenario.expectations import (
    CHOOSING,
    MEASURED,
    MODEL_METRICS,
    TIME,
    Expectation,
    found_in,
    meets,
    needs_audit,
    reported_by,
)
from fedleak.scenario.matrix import label
from fedleak.scenario.naming import names_of, told_apart
from fedleak.scenario.weighing import (
    AGGREGATES,
    Aggregate,
    Found,
    Interval,
    aggregated,
    interval,
    rank_correlation,
    weigh,
)

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
_Sample = tuple[str, int, int]
"""Client, round, index of the true sample."""


@dataclass(frozen=True)
class _Run:
    """What one finished run gave, and which attacks came to nothing.

    Attributes:
        found: The values that count, by key.
        samples: Those of single samples, where there are any.
    """

    found: Mapping[_Key, Found]
    samples: Mapping[_Key, Mapping[_Sample, float]]
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
    own = {cell.name: list(_rows(cell.name, runs[cell.name])) for cell in study.cells}
    rows = tuple(
        row
        for name, found in own.items()
        for row in _joined(found, own.get(study.beside.get(name, ""), ()))
    )
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


def _joined(found: Sequence[Measured], other: Iterable[Measured]) -> Iterator[Measured]:
    """The rows of a cell, with what defenses cost in the one that it is joined to: what its
    global model reached, and what its clients report, in place of what they report here."""
    there = [row for row in other if row.round is None and not needs_audit(row.metric)]
    metrics = {row.metric for row in there}
    yield from (row for row in found if row.round is not None or row.metric not in metrics)
    yield from (replace(row, cell=each.cell) for each in found[:1] for row in there)


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
    troubles: Counter[tuple[str, str, str]] = Counter()
    granted = () if scenario.audit.known_labels else None
    # By what an attack and a measure are called together: one of each may have the same name.
    usual: dict[tuple[str | None, str | None], Mapping[str, Any]] = {}
    for attack_kind in ATTACKS:
        usual[attack_kind.kind_name(), None] = _defaults(attack_kind)
    for measure_kind in MEASURES:
        usual[None, measure_kind.kind_name()] = _defaults(measure_kind)
    for task in reversed(scenario.audit.tasks):  # of several of a kind the first is the usual
        if isinstance(task, Attack):
            usual[task.kind, None] = Cell(0, "", task, {}, granted).parameters
        else:
            usual[None, task.kind] = Cell(0, "", task, {}).parameters
    names: dict[str, str] = {}
    values: dict[_Key, dict[Hashable, float]] = defaultdict(dict)
    for outcome in finished(layout):
        kind = outcome.attack or outcome.measure or ""
        own = usual.get((outcome.attack, outcome.measure), {})
        attack = names[outcome.cell] = told_apart(kind, outcome.parameters, own)
        if outcome.status == "done":
            for number in (None, outcome.round):
                values[attack, TIME, None, number][outcome.client, outcome.round] = outcome.seconds
        else:
            troubles[attack, outcome.status, outcome.reason] += 1
    rounds = _rounds(layout)
    for number, metrics in _model_metrics(rounds).items():
        for metric in MODEL_METRICS:
            if metric in metrics:
                values[None, metric, None, number][number] = metrics[metric]
    for (client, metric, number), value in _client_metrics(rounds).items():
        values[None, metric, None, number][client] = value
        # Rounds ascend: of each client the last one stands for the run.
        values[None, metric, None, None][client] = value
    rows: dict[_Key, list[tuple[Hashable, dict[str, Any]]]] = defaultdict(list)
    samples: dict[_Key, dict[_Sample, float]] = defaultdict(dict)
    for row in chain.from_iterable(read_ledger(layout.results).values()):
        unit = row["client"], row["round"], row["sample"]
        for number in (None, row["round"]):
            key: _Key = (names[row["cell"]], row["metric"], row["layer"], number)
            rows[key].append((unit, row))
            if row["sample"] >= 0:
                samples[key][unit] = row["value"]
    found = {key: found_in(each) for key, each in rows.items()}
    found = {key: each for key, each in found.items() if each.values}
    found |= {key: Found(each) for key, each in values.items()}
    return _Run(found, samples, troubles, read_notes(layout))


def _defaults(kind: type[Component]) -> dict[str, Any]:
    """Parameters that need not be given, with what they are then."""
    return kind.model_construct(kind=kind.kind_name()).model_dump(mode="json")


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
    found = dict.fromkeys(key for run in runs.values() for key in run.found)
    several = len({key[3] for key in found} - {None}) > 1
    for key in sorted(found, key=lambda key: key[3] or 0):
        if key[3] is not None and not several:
            continue
        given = [run.found[key] for run in runs.values() if key in run.found]
        attack, metric, layer, number = key
        for how in AGGREGATES:
            values = [aggregated([*each.values.values()], how) for each in given]
            between = given[0].interval if len(runs) == 1 else interval(values)
            yield Measured(
                cell=cell,
                attack=attack,
                metric=metric,
                layer=layer,
                round=number,
                aggregate=how,
                repeats=len(values),
                samples=sum(len(each.values) for each in given),
                mean=float(np.mean(values)),
                sd=None if len(values) < 2 or between is None else float(np.std(values, ddof=1)),
                low=None if between is None else between[0],
                high=None if between is None else between[1],
            )


def _verdict(claim: Claim, study: Study, runs: _Runs) -> dict[str, Any]:
    """A published value beside what the repeats gave on average.

    The interval is that over the repeats; of a single one, that within the run.
    """
    expected = claim.expectation
    pairs: list[_Pairs] = []
    if expected.against is None:
        weighed = _weighed(claim, study, runs)
    else:
        pairs = _pairs(claim, study, runs)
        weighed = [rank_correlation(each) for each in pairs]
    values = [value for value, _ in weighed if value is not None]
    measured = float(np.mean(values)) if values else None
    between = weighed[0][1] if len(weighed) == 1 else interval(values)
    return {
        **expected.model_dump(mode="json", exclude=CHOOSING),
        "cells": claim.cells,
        "minus": claim.minus,
        "pairs": [pair for each in pairs for found in each.values() for pair in found],
        "measured": measured,
        "low": None if between is None else between[0],
        "high": None if between is None else between[1],
        "repeats": len(values),
        "met": meets(expected, measured),
    }


_Weighed = list[tuple[float | None, Interval | None]]
_Pairs = dict[Hashable, list[tuple[float, float]]]


def _weighed(claim: Claim, study: Study, runs: _Runs) -> _Weighed:
    """Of each repeat that has all that is compared, the value or the difference."""
    expected = claim.expectation
    (cell,) = claim.cells
    here = runs[cell]
    if claim.minus is None and expected.minus_layer is None:
        return [
            weigh(_claimed(expected, cell, expected.layer, study, run), None, expected.aggregate)
            for run in here.values()
        ]
    other = claim.minus or cell
    layer = expected.minus_layer or expected.layer
    return [
        weigh(
            _claimed(expected, cell, expected.layer, study, here[repeat]),
            _claimed(expected, other, layer, study, runs[other][repeat]),
            expected.aggregate,
        )
        for repeat in here
        if repeat in runs[other]
    ]


def _pairs(claim: Claim, study: Study, runs: _Runs) -> list[_Pairs]:
    """Of each repeat, the two metrics of each sample in all of the cells."""
    expected = claim.expectation
    repeats = []
    for repeat in range(study.repeats):
        pairs: _Pairs = defaultdict(list)
        for cell in claim.cells:
            if (run := runs[cell].get(repeat)) is None:
                continue
            one, other = (
                _of_samples(metric, expected, cell, study, run)
                for metric in (expected.metric, str(expected.against))
            )
            for unit in sorted(one.keys() & other.keys()):
                pairs[unit].append((one[unit], other[unit]))
        if pairs:
            repeats.append(pairs)
    return repeats


def _of_samples(
    metric: str, expectation: Expectation, cell: str, study: Study, run: _Run
) -> dict[_Sample, float]:
    found: dict[_Sample, float] = {}
    for task in _counted(metric, expectation, cell, study):
        found |= run.samples.get((task, metric, None, expectation.round), {})
    return {unit: value for unit, value in found.items() if not math.isnan(value)}


def _claimed(
    expectation: Expectation, cell: str, layer: str | None, study: Study, run: _Run
) -> Found:
    """What a run of a cell gave of what an expectation is about, in a layer."""
    given = [
        (task, run.found[key])
        for task in _counted(expectation.metric, expectation, cell, study)
        if (key := (task, expectation.metric, layer, expectation.round)) in run.found
    ]
    if len(given) == 1:
        return given[0][1]
    return Found(
        {(task, unit): value for task, each in given for unit, value in each.values.items()}
    )


def _counted(metric: str, expectation: Expectation, cell: str, study: Study) -> list[str | None]:
    """The attacks and measures whose values of a metric an expectation is about."""
    if not needs_audit(metric):
        return [None]
    if expectation.attack is not None and metric not in MEASURED:
        return [expectation.attack]
    (scenario,) = (each.scenario for each in study.cells if each.name == cell)
    # Without an attack named, all of the scenario's count; not those that were added later.
    return [*sorted(set(names_of(scenario.audit.tasks)))]


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
