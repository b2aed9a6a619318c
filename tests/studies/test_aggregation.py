"""From scores to the table, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tomli_w

from fedleak.auditor.cells import Cell
from fedleak.captures import RunLayout, StudyLayout
from fedleak.captures.ledger import write_ledger
from fedleak.errors import CaptureError, ScenarioError
from fedleak.scenario import load_study
from fedleak.studies import aggregate
from fedleak.studies.aggregation import Measured, interval

Tiny = Callable[..., dict[str, Any]]
ONE, TWO = "client.batch_size=1", "client.batch_size=2"


class Written:
    """A study's directory with scores that a test chose; nothing is run."""

    def __init__(self, root: Path, document: dict[str, Any]) -> None:
        self.root = root
        self.layout = StudyLayout(root)
        self.layout.cells.mkdir(parents=True)
        self.layout.scenario.write_text(tomli_w.dumps(document))
        self.study = load_study(document)

    def run(
        self,
        cell: str,
        repeat: int,
        psnr: Sequence[float],
        *,
        layer: str | None = None,
        accuracy: float | None = None,
        failed: str = "",
        rounds: int = 1,
        epsilon: float | None = None,
    ) -> None:
        (scenario,) = (c.scenario for c in self.study.cells if c.name == cell)
        layout = RunLayout(self.layout.run(cell, repeat))
        layout.cells.mkdir(parents=True)
        metrics = {} if accuracy is None else {"accuracy": accuracy, "clients/train_loss": 1.0}
        measured = {str(n): {"metrics": {**metrics, "accuracy": n / 10}} for n in range(1, rounds)}
        measured[str(rounds)] = {"metrics": metrics}
        if epsilon is not None:
            reported = {"bytes": 8, "metrics": {"update-noise/epsilon": epsilon}}
            measured[str(rounds)]["clients"] = {"client-000": reported}
        layout.manifest.write_text(json.dumps({"rounds": measured}))
        rows = []
        # The values go round by round: of two rounds the first has every other one.
        for number in range(1, rounds + 1):
            name = Cell(number, "client-000", scenario.audit.attacks[0], {}).name
            outcome = {
                "cell": name, "round": number, "client": "client-000", "attack": "analytic",
                "parameters": {}, "status": "failed" if failed else "done", "reason": failed,
                "seconds": 2.0 + repeat, "samples": len(psnr),
            }  # fmt: skip
            (layout.cells / f"{name}.json").write_text(json.dumps(outcome))
            rows += [
                {
                    "cell": name, "round": number, "client": "client-000", "attack": "analytic",
                    "sample": i, "match": i, "metric": "psnr", "value": v, "layer": layer,
                }
                for i, v in enumerate(psnr[number - 1 :: rounds])
            ]  # fmt: skip
        write_ledger(layout.results, rows)
        state = {"status": "done", "reason": "", "seconds": 1.0}
        self.layout.outcome(cell, repeat).write_text(json.dumps(state))

    def summary(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.layout.summary.read_text())
        return content


@pytest.fixture
def written(tiny: Tiny, tmp_path: Path) -> Callable[..., Written]:
    return lambda **tables: Written(tmp_path / "study", tiny(**tables))


def value(
    rows: Sequence[Measured],
    cell: str,
    metric: str,
    aggregate: str = "mean",
    round: int | None = None,
) -> Measured:
    wanted = cell, metric, aggregate, round
    (row,) = (r for r in rows if (r.cell, r.metric, r.aggregate, r.round) == wanted)
    return row


def test_samples_first_then_repeats(written: Callable[..., Written]) -> None:
    study = written(repeats=3)
    # Means 10, 20 and 36: mean 22, deviations -12, -2, 14, so the sum of squares is 344.
    study.run(ONE, 0, [10.0])
    study.run(ONE, 1, [5.0, 10.0, 45.0])
    study.run(ONE, 2, [40.0, 32.0, math.nan])
    row = value(aggregate(study.root), ONE, "psnr")
    assert (row.attack, row.layer, row.repeats, row.samples) == ("analytic", None, 3, 6)
    assert row.mean == pytest.approx(22)
    assert row.sd == pytest.approx(math.sqrt(344 / 2))
    # 4.302653 is the 97.5 % point of Student's t with two degrees of freedom, as printed.
    half = 4.302653 * math.sqrt(344 / 2) / math.sqrt(3)
    assert row.low == pytest.approx(22 - half, rel=1e-6)
    assert row.high == pytest.approx(22 + half, rel=1e-6)
    medians = value(aggregate(study.root), ONE, "psnr", "median")
    assert medians.mean == pytest.approx((10 + 10 + 36) / 3)
    assert value(aggregate(study.root), ONE, "psnr", "max").mean == pytest.approx(95 / 3)
    assert value(aggregate(study.root), ONE, "psnr", "min").mean == pytest.approx(47 / 3)


def test_intervals() -> None:
    # 12.706205 and 2.776445: the 97.5 % points for 1 and 4 degrees of freedom, as printed.
    assert interval([1.0, 3.0]) == pytest.approx((2 - 12.706205, 2 + 12.706205), rel=1e-6)
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3 - half, 3 + half), rel=1e-6)
    assert interval([7.0, 7.0]) == (7, 7)
    assert interval([7.0]) is None
    assert interval([7.0, math.inf]) is None


def test_one_repeat_has_no_interval(written: Callable[..., Written]) -> None:
    study = written()
    study.run(ONE, 0, [10.0, 20.0], accuracy=0.75)
    rows = aggregate(study.root)
    row = value(rows, ONE, "psnr")
    assert (row.mean, row.sd, row.low, row.high) == (15, None, None, None)
    model = value(rows, ONE, "accuracy")
    assert (model.mean, model.attack) == (0.75, None), "of the last round"
    assert value(rows, ONE, "seconds").mean == 2
    assert {row.metric for row in rows} == {"psnr", "accuracy", "seconds"}
    assert {row.cell for row in rows} == {ONE}, "the other cell was not run"


def test_what_a_measure_gave_of_all_samples_stands_for_those_of_single_ones(
    written: Callable[..., Written],
) -> None:
    audit = {"measures": [{"kind": "jacobian-sensitivity"}]}
    metric = {"metric": "jacobian-f-norm", "layer": "fc1"}
    study = written(
        matrix={"client.batch_size": [1, 2]}, audit={**audit, "attacks": [{"kind": "analytic"}]},
        expect=[{**metric, "comparison": ">=", "value": 4.0, "aggregate": "mean"}],
    )  # fmt: skip
    study.run(ONE, 0, [10.0])
    (scenario,) = (c.scenario for c in study.study.cells if c.name == ONE)
    layout = RunLayout(study.layout.run(ONE, 0))
    cell = {
        "cell": Cell(1, "client-000", scenario.audit.measures[0], {}).name, "round": 1,
        "client": "client-000", "attack": None, "measure": "jacobian-sensitivity",
    }  # fmt: skip
    done = {"parameters": {}, "status": "done", "reason": "", "seconds": 1.0, "samples": 2}
    (layout.cells / f"{cell['cell']}.json").write_text(json.dumps({**cell, **done}))
    values = {**cell, **metric, "match": -1}
    write_ledger(
        layout.results,
        [
            {**values, "sample": 0, "value": 3.0, "low": math.nan, "high": math.nan},
            {**values, "sample": 1, "value": 9.0, "low": math.nan, "high": math.nan},
            {**values, "sample": -1, "value": 6.0, "low": 4.5, "high": 7.5},
        ],
    )
    row = value(aggregate(study.root), ONE, "jacobian-f-norm")
    assert (row.attack, row.mean, row.low, row.high) == ("jacobian-sensitivity", 6.0, 4.5, 7.5)
    assert row.sd is None and row.samples == 1
    one, two = study.summary()["expectations"]
    assert (one["measured"], one["low"], one["high"], one["met"]) == (6.0, 4.5, 7.5, True)
    assert two["measured"] is None


def test_each_round_has_rows_of_its_own(written: Callable[..., Written]) -> None:
    study = written(repeats=2, federation={"clients": 2, "rounds": 3})
    study.run(ONE, 0, [10.0, 20.0, 60.0], accuracy=0.5, rounds=3)
    study.run(ONE, 1, [20.0, 30.0, 40.0], accuracy=0.75, rounds=3)
    study.run(TWO, 0, [10.0], accuracy=0.5, rounds=1)
    rows = aggregate(study.root)
    accuracies = [value(rows, ONE, "accuracy", round=number).mean for number in (1, 2, 3, None)]
    assert accuracies == pytest.approx([0.1, 0.2, 0.625, 0.625]), "the last stands for the run"
    scored = [value(rows, ONE, "psnr", round=number).mean for number in (1, 2, 3, None)]
    assert scored == pytest.approx([15, 25, 50, 30])
    assert value(rows, ONE, "psnr", round=1).samples == 2
    assert {row.round for row in rows if row.cell == TWO} == {None}, "one round is the whole run"
    column = pq.ParquetFile(study.layout.table).read()["round"]
    assert set(column.to_pylist()) == {None, 1, 2, 3}


def test_an_expectation_may_name_a_round(written: Callable[..., Written]) -> None:
    common = {"comparison": "==", "where": {"client.batch_size": 1}}
    study = written(
        federation={"clients": 2, "rounds": 2},
        expect=[
            {**common, "metric": "accuracy", "value": 0.1, "round": 1},
            {**common, "metric": "accuracy", "value": 0.5},
            {**common, "metric": "psnr", "value": 40.0, "round": 2},
        ],
    )
    study.run(ONE, 0, [10.0, 40.0], accuracy=0.5, rounds=2)
    aggregate(study.root)
    told = study.summary()["expectations"]
    assert [(e["round"], e["measured"], e["met"], e["repeats"]) for e in told] == [
        (1, 0.1, True, 1), (None, 0.5, True, 1), (2, 40.0, True, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"metric": "accuracy", "round": 3}, "no round 3; federation.rounds is 2"),
        ({"metric": "psnr", "round": 2}, r"round 2 is not among audit\.rounds \(1\)"),
    ],
)
def test_a_round_that_is_not_there_is_refused(tiny: Tiny, more: Any, said: str) -> None:
    audit = {"attacks": [{"kind": "analytic"}], "rounds": [1]}
    expected = {"comparison": "==", "value": 1.0, **more}
    federation = {"clients": 2, "rounds": 2}
    with pytest.raises(ScenarioError, match=said):
        load_study(tiny(federation=federation, audit=audit, expect=[expected]))
    expected["metric"], expected["round"] = "accuracy", 2  # not audited, but measured
    assert load_study(tiny(federation=federation, audit=audit, expect=[expected])).claims


def test_the_table_has_the_keys_as_columns(written: Callable[..., Written]) -> None:
    matrix = {"client.batch_size": [1], "model": [{"kind": "mlp", "hidden": [9]}]}
    study = written(matrix=matrix)
    (cell,) = study.study.cells
    study.run(cell.name, 0, [10.0], layer="fc1")
    aggregate(study.root)
    table = pq.ParquetFile(study.layout.table).read()
    assert table.column_names[:3] == ["client.batch_size", "model", "cell"]
    first = next(row for row in table.to_pylist() if row["metric"] == "psnr")
    assert first["client.batch_size"] == 1.0
    assert first["model"] == "mlp hidden=[9]"
    assert first["layer"] == "fc1"


def test_keys_that_some_cells_lack(written: Callable[..., Written]) -> None:
    study = written(matrix=[{"client.batch_size": [1]}, {"init.kind": ["normal"]}])
    for cell in study.study.cells:
        study.run(cell.name, 0, [10.0])
    aggregate(study.root)
    table = pq.ParquetFile(study.layout.table).read().to_pylist()
    assert {(row["client.batch_size"], row["init.kind"]) for row in table} == {
        (1.0, None), (None, "normal"),
    }  # fmt: skip


def test_published_values_beside_measured_ones(written: Callable[..., Written]) -> None:
    compact = {
        "metric": "psnr", "aggregate": "mean", "comparison": "==", "tolerance": 1.0,
        "over": "client.batch_size", "values": {"1": 15.5, "2": 40.0}, "source": "Table 1",
    }  # fmt: skip
    study = written(repeats=2, expect=[compact])
    for repeat, values in enumerate([[10.0, 12.0], [20.0]]):
        study.run(ONE, repeat, values)
        study.run(TWO, repeat, [30.0])
    aggregate(study.root)
    first, second = study.summary()["expectations"]
    assert (*first["cells"], first["value"], first["measured"], first["met"]) == (
        ONE, 15.5, 15.5, True,
    )  # fmt: skip
    # 11 and 20: half of their distance times the 97.5 % point for one degree of freedom.
    assert first["high"] - first["measured"] == pytest.approx(4.5 * 12.706205, rel=1e-6)
    assert (*second["cells"], second["measured"], second["met"]) == (TWO, 30.0, False)
    assert {"where", "over", "values"}.isdisjoint(first)


def test_two_cells_are_compared_repeat_by_repeat(written: Callable[..., Written]) -> None:
    claim = {
        "metric": "psnr", "comparison": ">=", "value": 5.0,
        "where": {"client.batch_size": 1}, "minus": {"client.batch_size": 2},
    }  # fmt: skip
    study = written(repeats=3, expect=[claim])
    for repeat, (one, two) in enumerate([(20.0, 10.0), (50.0, 42.0)]):
        study.run(ONE, repeat, [one])
        study.run(TWO, repeat, [two])
    study.run(ONE, 2, [1000.0])  # has no counterpart
    aggregate(study.root)
    (told,) = study.summary()["expectations"]
    assert (told["measured"], told["met"], told["minus"]) == (9.0, True, TWO)
    assert told["high"] - 9 == pytest.approx(12.706205, rel=1e-6)


def test_forms_of_one_attack_have_values_of_their_own(tiny: Tiny, tmp_path: Path) -> None:
    claims = [
        {"metric": "psnr", "comparison": ">=", "value": 5.0, "attack": name}
        for name in ("gs", "gs restarts=1", "gs mask_zeros=true")
    ]
    attacks = [{"kind": "gs", **more} for more in ({}, {"restarts": 1}, {"mask_zeros": True})]
    document = tiny(matrix={"seed": [1]}, audit={"attacks": attacks}, expect=claims)
    study = Written(tmp_path / "study", document)
    (cell,) = study.study.cells
    study.run(cell.name, 0, [10.0])
    layout = RunLayout(study.layout.run(cell.name, 0))
    rows = []
    for attack, found in zip(cell.scenario.audit.attacks, (7.0, 8.0, 9.0), strict=True):
        made = Cell(1, "client-000", attack, {})
        outcome = {
            "cell": made.name, "round": 1, "client": "client-000", "attack": "gs",
            "parameters": made.parameters, "status": "done", "reason": "", "seconds": 1.0,
            "samples": 1,
        }  # fmt: skip
        (layout.cells / f"{made.name}.json").write_text(json.dumps(outcome))
        rows.append(
            {
                "cell": made.name, "round": 1, "client": "client-000", "attack": "gs",
                "sample": 0, "match": 0, "metric": "psnr", "value": found, "layer": None,
            }
        )  # fmt: skip
    write_ledger(layout.results, rows)
    table = {(row.attack, row.mean) for row in aggregate(study.root) if row.metric == "psnr"}
    assert table == {("gs", 7.0), ("gs restarts=1", 8.0), ("gs mask_zeros=true", 9.0)}
    assert [e["measured"] for e in study.summary()["expectations"]] == [7.0, 8.0, 9.0]


def test_a_cell_that_is_joined_is_shown_with_the_others_accuracy(
    tiny: Tiny, tmp_path: Path
) -> None:
    study = Written(
        tmp_path / "study",
        tiny(
            join="client.lr",
            matrix=[
                {"client.lr": [0.1, 0.2], "federation.evaluate": [False]},
                {"client.lr": [0.2, 0.1]},
            ],
        ),
    )
    scored, other, tested, untold = (cell.name for cell in study.study.cells)
    assert study.study.beside == {scored: untold, other: tested}
    study.run(scored, 0, [10.0])
    study.run(other, 0, [20.0], epsilon=1.0)
    study.run(tested, 0, [], accuracy=0.7, epsilon=3.0)
    rows = aggregate(study.root)
    assert value(rows, other, "psnr").mean == 20.0
    assert value(rows, other, "accuracy").mean == 0.7
    assert value(rows, other, "update-noise/epsilon").mean == 3.0, "of the rounds that reached it"
    assert not [row for row in rows if (row.cell, row.metric) == (scored, "accuracy")]


def test_what_was_not_measured_is_a_miss(written: Callable[..., Written]) -> None:
    study = written(expect=[{"metric": "ssim", "comparison": "<=", "value": 1.0}])
    study.run(ONE, 0, [10.0])
    aggregate(study.root)
    assert [(e["measured"], e["met"]) for e in study.summary()["expectations"]] == [
        (None, False), (None, False),
    ]  # fmt: skip


def test_attacks_that_failed_are_counted(written: Callable[..., Written]) -> None:
    study = written(repeats=2)
    study.run(ONE, 0, [], failed="it diverged")
    study.run(ONE, 1, [], failed="it diverged")
    aggregate(study.root)
    cell = study.summary()["cells"][0]
    assert cell["troubles"] == [
        {"attack": "analytic", "status": "failed", "reason": "it diverged", "cells": 2}
    ]
    assert [run["status"] for run in study.summary()["cells"][1]["runs"]] == ["missing"] * 2


def test_damaged_results_are_named(written: Callable[..., Written]) -> None:
    study = written()
    study.run(ONE, 0, [10.0])
    RunLayout(study.layout.run(ONE, 0)).results.write_text("no table")
    with pytest.raises(CaptureError, match=r"results\.parquet is damaged"):
        aggregate(study.root)


def test_what_clients_report_stands_beside_the_scores(
    written: Callable[..., Written],
) -> None:
    study = written()
    study.run(ONE, 0, [10.0, 20.0], rounds=2)
    layout = RunLayout(study.layout.run(ONE, 0))
    manifest = json.loads(layout.manifest.read_text())

    def client(epsilon: float, **more: Any) -> dict[str, Any]:
        metrics = {"update-noise/epsilon": epsilon, "train_loss": 2.0, **more}
        return {"metrics": metrics, "bytes": 1000, "seconds": epsilon}

    manifest["rounds"]["1"] |= {"clients": {"client-000": client(1.0), "client-001": client(2.0)}}
    sparse = {"top-k/bytes": 80.0, "quantise/bytes": 90.0}
    manifest["rounds"]["2"] |= {
        "clients": {"client-000": client(5.0, **sparse)},
        "refused": {"client-002": "a trap"},
    }
    layout.manifest.write_text(json.dumps(manifest))
    rows = aggregate(study.root)

    def means(metric: str) -> list[float]:
        return [value(rows, ONE, metric, round=number).mean for number in (1, 2, None)]

    # The last round of each client stands for the run: 5 and 2.
    assert means("update-noise/epsilon") == [1.5, 5.0, 3.5]
    assert means("train-seconds") == [1.5, 5.0, 3.5]
    assert means("bytes-sent") == [1000.0, 80.0, 540.0]
    assert means("refused") == [0.0, 0.5, pytest.approx(1 / 3)]
    assert value(rows, ONE, "update-noise/epsilon", "max").mean == 5.0
    assert "train_loss" not in {row.metric for row in rows}


def test_rank_correlations_are_over_the_samples_of_all_cells(
    written: Callable[..., Written],
) -> None:
    def claim(**where: Any) -> dict[str, Any]:
        return {
            "metric": "psnr", "against": "ssim", "comparison": ">=", "value": 0.5, "where": where,
        }  # fmt: skip

    study = written(expect=[claim(), claim(**{"client.batch_size": 2})])
    psnr = {ONE: [1.0, 2.0, 3.0, 4.0], TWO: [11.0, 12.0, 13.0, 14.0, math.nan]}
    ssim = {ONE: [0.4, 0.3, 0.2, 0.1], TWO: [0.8, 0.7, 0.6, 0.5, 0.9]}
    for cell, values in psnr.items():
        study.run(cell, 0, values)
        path = RunLayout(study.layout.run(cell, 0)).results
        rows = pq.ParquetFile(path).read().to_pylist()
        more = [{**row, "metric": "ssim", "value": ssim[cell][row["sample"]]} for row in rows]
        write_ledger(path, [*rows, *more])
    aggregate(study.root)
    together, within = study.summary()["expectations"]
    # Ranks 1 to 8 against 4, 3, 2, 1, 8, 7, 6, 5: squared differences 2 * (9 + 1 + 1 + 9).
    assert together["measured"] == pytest.approx(1 - 6 * 40 / (8 * 63))
    assert within["measured"] == pytest.approx(-1.0)
    assert (together["cells"], within["cells"]) == ([ONE, TWO], [TWO])
    assert (together["met"], within["met"]) == (True, False)
    assert together["low"] is None, "four samples are too few for an interval"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"against": "psnr"}, "the metric itself"),
        ({"against": "accuracy"}, "'accuracy' is not of single samples"),
        ({"against": "ssim", "minus": {"client.batch_size": 2}}, "without minus"),
        ({"against": "ssmi"}, "'ssmi' is not one of"),
        ({"against": "i2f"}, "nothing measures it"),
    ],
)
def test_correlations_that_cannot_be_are_refused(tiny: Tiny, more: Any, said: str) -> None:
    expected = {"metric": "psnr", "comparison": ">=", "value": 0.5, **more}
    with pytest.raises(ScenarioError, match=said):
        load_study(tiny(expect=[expected]))
