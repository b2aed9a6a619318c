"""Reports of studies, from files that a test wrote: nothing is run."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from fedleak.captures import StudyLayout
from fedleak.errors import CaptureError, ResourceError
from fedleak.reporting import report, study_markdown, study_report
from fedleak.reporting.drawing import smoothed
from fedleak.reporting.study import read_study
from fedleak.reporting.study.figures import figures
from fedleak.reporting.study.tables import (
    answer,
    pareto_front,
    plus_minus,
    telling_keys,
    trades,
    verdicts,
    with_interval,
)

Build = Callable[..., Path]


def expected(cell: str, value: float, measured: float | None, **more: Any) -> dict[str, Any]:
    return {
        "metric": "psnr", "aggregate": "mean", "comparison": "==", "value": value,
        "measured": measured, "met": measured == value, "cells": [cell], "repeats": 2, **more,
    }  # fmt: skip


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Writes a study with a batch size for each of ``psnr``: (mean, low, high).

    ``accuracies`` are those of its cells by round.
    """

    def make(
        psnr: Sequence[tuple[float, float | None, float | None]] = ((40.0, 38.0, 42.0), (9, 8, 10)),
        settings: Callable[[int], dict[str, str]] = lambda i: {"client.batch_size": str(2**i)},
        metrics: Sequence[str] = ("psnr",),
        accuracies: Sequence[Sequence[float]] = (),
        **summary: Any,
    ) -> Path:
        layout = StudyLayout(tmp_path / "study")
        layout.cells.mkdir(parents=True)
        layout.scenario.write_text('name = "s"\n')
        layout.environment.write_text(json.dumps({"command": "fedleak run <s>.toml"}))
        names = [f"cell-{i}" for i in range(len(psnr))]
        runs = [{"repeat": r, "status": "done", "seconds": 1.0} for r in range(2)]
        cells = [
            {"name": name, "settings": settings(i), "runs": runs, "troubles": []}
            for i, name in enumerate(names)
        ]
        content = {
            "name": "s", "keys": list(dict.fromkeys(k for c in cells for k in c["settings"])),
            "repeats": 2, "aggregation": "How.", "cells": cells, "expectations": [], "notes": [],
        }  # fmt: skip
        layout.summary.write_text(json.dumps(content | summary))
        rows = [
            {
                "cell": name, "attack": "gs", "metric": metric, "layer": None, "round": None,
                "aggregate": how, "repeats": 2, "samples": 4, "mean": float(mean), "low": low,
                "high": high, "sd": None if low is None else 1.0,
            }
            for name, (mean, low, high) in zip(names, psnr, strict=True)
            for metric in metrics
            for how in ("mean", "median")
        ]  # fmt: skip
        rows += [
            {
                "cell": name, "attack": None, "metric": "accuracy", "layer": None,
                "round": number, "aggregate": "mean", "repeats": 2, "samples": 2,
                "mean": each[(number or 0) - 1], "sd": None, "low": None, "high": None,
            }
            for name, each in zip(names, accuracies, strict=False)
            for number in (None, *range(1, len(each) + 1))
        ]  # fmt: skip
        schema = pa.schema(
            [(n, pa.string()) for n in ("cell", "attack", "metric", "layer", "aggregate")]
            + [(n, pa.int64()) for n in ("round", "repeats", "samples")]
            + [(n, pa.float64()) for n in ("mean", "sd", "low", "high")]
        )
        pq.write_table(pa.Table.from_pylist(rows, schema), layout.table)
        return layout.root

    return make


def printed(place: Path) -> list[str]:
    file = io.StringIO()
    Console(width=80, file=file).print(study_report(place))
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    return lines


def drawings(place: Path) -> list[str]:
    """The SVGs in a page."""
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', report(place).read_text())
    return [base64.b64decode(text).decode() for text in found]


def test_the_answer_then_the_misses_then_the_table(build: Build) -> None:
    place = build(
        [(40.0, 38.0, 42.0), (9, 8, 10), (1, None, None)],
        expectations=[
            expected("cell-0", 40.0, 40.0),
            expected("cell-1", 12.0, 9.0, tolerance=2.0),
            expected("cell-2", 4.0, 1.0, tolerance=0.5),
        ],
    )
    lines = printed(place)
    assert lines[0].startswith("1 of 3 expected values were met. Most leaked at batch_size = 1:")
    missed = lines.index("Missed worst:")
    assert lines[missed + 1 : missed + 3] == [
        "  psnr at batch_size = 4: 1, expected 4 ± 0.5",
        "  psnr at batch_size = 2: 9, expected 12 ± 2",
    ]
    rows = [line.split() for line in lines]
    table = rows.index(["batch_size", "psnr"])
    assert rows[table + 1 : table + 4] == [
        ["1", "40.0", "±", "2.0"],
        ["2", "9.0", "±", "1.0"],
        ["4", "1"],
    ]
    assert rows.index(["1", "40", "/", "40"]) > table
    assert ["2", "12", "/", "9", "NO"] in rows
    assert sum(line.startswith("batch_size") for line in lines) == 2, "a row is a cell"


def paper(i: int) -> dict[str, str]:
    """Two data sets, two values of s; kind, root and path vary together."""
    data = (
        {"data.kind": "mnist", "data.root": "data/mnist"},
        {"data.kind": "npz", "data.path": "data/cifar10/a-very-long-name.npz"},
    )[i // 2]
    return {**data, "model.kind": "mlp", "server.scaling": ("0.5", "0.7")[i % 2]}


def test_keys_that_tell_nothing_are_no_columns(build: Build) -> None:
    place = build([(1, None, None)] * 4, settings=paper)
    rows = [line.split() for line in printed(place)]
    assert ["data.kind", "scaling", "psnr"] in rows
    assert ["npz", "0.7", "1"] in rows
    assert "data/" not in " ".join(printed(place)) + study_markdown(place)


def test_a_kind_says_what_a_path_before_it_says(build: Build) -> None:
    def turned(i: int) -> dict[str, str]:
        return dict(reversed(paper(i).items()))

    results = read_study(build([(1, None, None)] * 4, settings=turned))
    assert telling_keys(results) == ["server.scaling", "data.kind"]


def test_paths_stay_where_the_kind_does_not_tell_them_apart(build: Build) -> None:
    results = read_study(build(settings=lambda i: {"data.kind": "npz", "data.path": f"{i}.npz"}))
    assert telling_keys(results) == ["data.path"]


def test_only_metrics_that_are_expected_are_columns(build: Build) -> None:
    metrics = ["mse", "psnr", "ssim", "extraction-recall", "seconds"]
    assert ["batch_size", "psnr", "ssim", "extraction-recall"] in [
        line.split() for line in printed(build(metrics=metrics))
    ], "the main ones"


def test_what_an_expectation_mentions_is_a_column(build: Build) -> None:
    place = build(
        metrics=["psnr", "mse"], expectations=[expected("cell-0", 1.0, 40.0, metric="mse")]
    )
    lines = printed(place)
    assert ["batch_size", "mse"] in [line.split() for line in lines]
    assert "PSNR" not in lines[0]


def test_many_metrics_are_cut_into_tables_of_80_columns(build: Build) -> None:
    metrics = [f"metric-number-{i}" for i in range(9)]
    lines = printed(build(metrics=metrics))
    heads = [line for line in lines if line.startswith("batch_size ")]
    assert len(heads) > 1
    assert [word for head in heads for word in head.split()[1:]] == metrics


def test_where_published_values_do_not_fit_the_missed_ones_are_listed(build: Build) -> None:
    metrics = [f"metric-number-{i}" for i in range(9)]
    claims = [expected("cell-0", 40.0, 40.0, metric=name) for name in metrics]
    place = build(metrics=metrics, expectations=[*claims, expected("cell-1", 8.0, 9.0)])
    rows = [line.split() for line in printed(place)]
    assert ["batch_size", "missed", "published", "measured"] in rows
    assert ["2", "psnr", "8", "9"] in rows
    assert not any("/" in row for row in rows)
    assert study_markdown(place).count("| yes |") == 9


def test_values_in_words(build: Build) -> None:
    (value, *_) = read_study(build([(1.0, None, None)])).values
    assert with_interval(value) == "1"
    assert with_interval(None) == "–"
    assert plus_minus(0.14836, 0.14525, 0.15147) == "0.1484 ± 0.0031"
    assert plus_minus(-40.26, -52.26, -28.26) == "−40 ± 12"
    assert plus_minus(0.5, 0.5, 0.5) == "0.5", "without any spread"


def test_the_model_over_rounds(build: Build) -> None:
    courses = [[n / 100 for n in range(30)], [0.5] * 30]
    place = build(
        accuracies=courses,
        expectations=[expected("cell-0", 0.04, 0.04, metric="accuracy", round=5)],
    )
    lines = printed(place)
    start = lines.index("accuracy after round")
    head, first, second = (line.split() for line in lines[start + 1 : start + 4])
    assert head[0] == "batch_size" and head[-1] == "30" and 4 < len(head) < 15
    assert [float(word) for word in first[1:]] == [courses[0][int(n) - 1] for n in head[1:]]
    assert set(second[1:]) == {"0.500"}
    assert any(line.split() == ["batch_size", "accuracy", "in", "round", "5"] for line in lines)
    assert "| 1 | accuracy in round 5 | 0.04 |" in study_markdown(place)
    titles = [figure.title for figure in figures(read_study(place))]
    assert titles[0] == "mean accuracy over round"
    assert "batch_size = 1, published" in drawings(place)[0]


def test_a_figure_for_each_metric_over_the_numeric_key(build: Build) -> None:
    place = build(
        [(40.0, 38.0, 42.0), (9.0, 8.0, 10.0), (5.0, None, None), (float("inf"), None, None)],
        settings=lambda i: {"init.kind": "ab"[i % 2], "client.batch_size": str(10 ** (i // 2 * 3))},
        metrics=["psnr", "ssim"],
        expectations=[expected("cell-0", 41.0, 40.0), expected("cell-1", 9.0, 9.0, metric="ssim")],
    )
    drawn = figures(read_study(place))
    assert [figure.title for figure in drawn] == [
        "mean psnr over client.batch_size", "mean ssim over client.batch_size",
    ]  # fmt: skip
    svgs = drawings(place)
    assert len(svgs) == 2
    for svg in svgs:
        words = {e.text for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")}
        assert {"client.batch_size", "kind = a", "kind = b"} <= words
        assert len(svg) < 60_000
    assert "kind = a, published" in svgs[0] and "kind = b, published" not in svgs[0]
    assert "kind = b, published" in svgs[1]


def test_a_difference_of_two_cells_is_not_drawn_at_one_of_them(build: Build) -> None:
    place = build(expectations=[expected("cell-0", 31.0, 31.0, minus="cell-1")])
    assert "published" not in drawings(place)[0]
    words = " ".join(" ".join(printed(place)).split())
    assert "psnr minus batch_size = 2" in words
    assert "| 1 | psnr minus batch_size = 2 | 31 | 31 |" in study_markdown(place)


def test_without_a_numeric_key_cells_stand_side_by_side(build: Build) -> None:
    place = build(settings=lambda i: {"init.kind": ["xavier", "a$b$"][i]})
    (svg,) = drawings(place)
    assert "xavier" in svg and "a$b$" in svg


def test_the_page_needs_nothing_from_outside_and_escapes(build: Build) -> None:
    place = build(
        settings=lambda i: {"client.batch_size": f"<b>{i}"},
        expectations=[expected("cell-0", 1.0, 40.0, source="<script>")],
        notes=["A <note>."],
    )
    page = report(place).read_text()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "<script" not in page and "<b>0" not in page and "&lt;b&gt;0" in page
    assert "fedleak run &lt;s&gt;.toml" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    order = [page.index(part) for part in (
        "<h1>", "A &lt;note&gt;.", "Cells</h2>", "Published and measured</h2>",
        "Figures</h2>", "Every value</h2>",
    )]  # fmt: skip
    assert order == sorted(order)


def test_what_did_not_finish_is_told(build: Build) -> None:
    place = build()
    summary = json.loads((place / "study.json").read_text())
    summary["cells"][0]["runs"] = [
        {"repeat": 0, "status": "failed", "reason": "Traceback\n  x\nKeyError: 'y'"},
        {"repeat": 1, "status": "missing"},
    ]
    summary["cells"][1]["troubles"] = [
        {"attack": "gs", "status": "failed", "reason": "diverged", "cells": 3}
    ]
    (place / "study.json").write_text(json.dumps(summary))
    words = " ".join(printed(place))
    assert "2 of 4 runs finished, 1 failed, 1 not run yet." in words
    assert "cell-0 failed: KeyError: 'y'" in words
    assert "cell-1, gs failed: diverged (3 times)" in words
    assert "KeyError: &#39;y&#39;" in report(place).read_text()


def test_markdown_of_a_study_without_expectations(build: Build) -> None:
    lines = study_markdown(build(notes=["Mind this."])).splitlines()
    assert "Mind this." in lines
    assert [line for line in lines if line.startswith("|")] == [
        "| batch_size | psnr |",
        "| --- | --- |",
        "| 1 | 40.0 ± 2.0 |",
        "| 2 | 9.0 ± 1.0 |",
    ]


def test_markdown_of_published_values(build: Build) -> None:
    claim = expected("cell-1", 12.0, 9.0, low=8.0, high=10.0, tolerance=2.0, source="Table 1")
    place = build(expectations=[claim, expected("cell-0", 40.0, 40.0, repeats=1)])
    text = study_markdown(place)
    assert "fedleak run <s>.toml" in text
    assert "Mean over 2 repeats ± half its 95 % interval" in text
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| batch_size | value | published | tolerance | measured | difference | met | source |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| 2 | psnr | 12 | ± 2 | 9.0 ± 1.0 | −3 | **no** | Table 1 |",
        "| 1 | psnr | 40 |  | 40 (n = 1) | 0 | yes |  |",
    ]


def test_keys_are_shortened_as_far_as_they_stay_apart(build: Build) -> None:
    keys = {"data.kind": "x", "model.kind": "y", "audit.attacks.0.tv": "1", "seed": "2"}
    results = read_study(build(settings=lambda _: keys))
    assert list(results.short_keys.values()) == ["data.kind", "model.kind", "tv", "seed"]


def test_what_is_no_study_or_damaged(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="is no study's directory"):
        read_study(tmp_path)
    place = build()
    (place / "study.parquet").write_text("x")
    with pytest.raises(CaptureError, match=r"study\.parquet is damaged"):
        read_study(place)
    (place / "study.json").unlink()
    with pytest.raises(ResourceError, match="has no table yet; `fedleak report"):
        report(place)


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ({"a": (10.0, 0.9)}, ("a",)),
        ({"a": (10.0, 0.9), "b": (5.0, 0.8), "c": (7.0, 0.7)}, ("b", "a")),
        # As much accuracy for less leakage, less leakage for as much accuracy.
        ({"a": (10.0, 0.9), "b": (5.0, 0.9), "c": (5.0, 0.8)}, ("b",)),
        ({"a": (5.0, 0.9), "b": (5.0, 0.9), "c": (6.0, 0.9)}, ("a", "b")),
        ({"a": (1.0, 0.1), "b": (2.0, 0.2), "c": (3.0, 0.3)}, ("a", "b", "c")),
    ],
)
def test_the_pareto_front_is_what_nothing_beats(
    points: dict[str, tuple[float, float]], front: tuple[str, ...]
) -> None:
    assert pareto_front(points) == front
    # By its definition, pair by pair.
    assert set(front) == {
        name
        for name, (leak, good) in points.items()
        if not any(
            less <= leak and more >= good and (less, more) != (leak, good)
            for less, more in points.values()
        )
    }


def test_a_study_of_defenses_draws_accuracy_against_leakage(build: Build) -> None:
    defended = build(
        psnr=[(40.0, None, None), (20.0, None, None), (30.0, None, None)],
        accuracies=[[0.9], [0.8], [0.7]],
        settings=lambda i: {"client.defenses.0.scale": str(i)},
        repeats=1,
    )
    results = read_study(defended)
    (trade,) = trades(results)
    assert trade.leakage == "psnr"
    assert [trade.points[name] for name in trade.front] == [(20.0, 0.8), (40.0, 0.9)]
    (drawn,) = [f for f in figures(results) if "Pareto" in f.title]
    assert "scale = 1; scale = 0" in drawn.alt


def test_the_table_of_choices_joins_what_is_left_and_what_it_costs(build: Build) -> None:
    defended = build(
        psnr=[(40.0, None, None), (math.inf, None, None), (30.0, None, None)],
        accuracies=[[0.9], [0.8], [0.7]],
        settings=lambda i: {"client.defenses.0.scale": str(i)},
        repeats=1,
    )
    (trade,) = trades(read_study(defended))
    # What leaks everything is drawn nowhere, and no choice.
    assert trade.points["cell-1"] == (math.inf, 0.8)
    assert trade.front == ("cell-2", "cell-0")
    rows = [
        "| scale | accuracy | psnr of gs | Pareto front |",
        "| --- | --- | --- | --- |",
        "| 0 | 0.9 | 40 | yes |",
        "| 1 | 0.8 | ∞ |  |",
        "| 2 | 0.7 | 30 | yes |",
    ]
    assert "\n".join(rows) in study_markdown(defended)
    words = " ".join(printed(defended))
    assert "accuracy against psnr" in words
    assert "Pareto front" in words
    assert "Accuracy against psnr</h2>" in report(defended).read_text()


def test_of_the_mean_squared_error_less_is_more_leakage(build: Build) -> None:
    defended = build(
        psnr=[(0.3, None, None), (0.1, None, None), (0.2, None, None)],
        metrics=("mse",),
        accuracies=[[0.9], [0.8], [0.95]],
        settings=lambda i: {"client.defenses.0.scale": str(i)},
        expectations=[{**expected("cell-0", 0.1, 0.3), "metric": "mse"}],
        repeats=1,
    )
    (trade,) = trades(read_study(defended))
    assert trade.leakage == "mse"
    assert trade.front == ("cell-0", "cell-2")


def test_a_study_of_something_else_draws_none(build: Build) -> None:
    assert trades(read_study(build(accuracies=[[0.9], [0.8]]))) == []


def test_what_several_cells_show_together(build: Build) -> None:
    correlation = {
        "metric": "i2f", "against": "mse", "aggregate": "median", "comparison": ">=", "value": 0.5,
        "measured": 0.75, "low": 0.25, "high": 0.875, "met": True, "repeats": 2,
        "claim": "they rise together", "cells": ["cell-0", "cell-1"],
    }  # fmt: skip
    settings = {"model.kind": "lenet"}
    place = build(
        settings=lambda i: {**settings, "client.batch_size": str(2**i)},
        expectations=[correlation, expected("cell-0", 40.0, 40.0)],
    )
    markdown = study_markdown(place)
    assert (
        "Undecided: they rise together (Spearman's rho of i2f and mse is 0.75, 95 % interval 0.25 "
        "to 0.875 over 2 cells; ≥ 0.5 was expected)." in markdown
    )
    assert "| Spearman's rho of i2f and mse | ≥ 0.5 | 0.75 (0.25 to 0.875) |" in markdown
    text = "\n".join(printed(place))
    assert "≥ 0.5 / 0.75" in text and "40 / 40" in text
    assert "Spearman" in report(place).read_text()


def test_what_was_claimed_names_settings_and_no_directories(build: Build) -> None:
    place = build(
        [(1, None, None)] * 4,
        settings=paper,
        expectations=[
            expected("cell-1", 1.0, 1.0, claim="one leaks"),
            expected("cell-1", 0.0, 0.0, minus="cell-3", claim="both leak"),
            expected("cell-1", 1.0, 1.0, cells=["cell-0", "cell-1"], claim="all leak"),
            expected("cell-2", 2.0, 1.0, low=0.5, high=2.5, claim="who knows"),
        ],
    )
    results = read_study(place)
    told = verdicts(results)
    assert "(mean psnr is 1 at data.kind = mnist, scaling = 0.7; = 1 was expected)" in told[0]
    assert "at data.kind = mnist, scaling = 0.7 minus data.kind = npz; =" in told[1]
    assert "over 2 cells of data.kind = mnist; =" in told[2]
    assert "3 of 4 expected values were met; 1 claim is undecided." in answer(results)


def test_lowess_of_a_line_is_the_line() -> None:
    xs = [1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 9.0]
    places, heights = smoothed(xs, [2 * x - 1 for x in xs])
    assert places == [1, 2, 3, 5, 8, 9]
    assert heights == pytest.approx([2 * x - 1 for x in places])
    assert smoothed(xs[:5], xs[:5]) == ([], []), "too few points"
    assert smoothed([1.0, 2.0] * 4, [1.0] * 8) == ([], []), "at two places only"


def test_lowess_is_local_and_robust() -> None:
    """It follows a bend that a line misses, and not an outlier that a mean follows."""
    xs = [float(x) for x in range(21)]
    ys = [abs(x - 10) for x in xs]
    ys[4] += 100
    _, heights = smoothed(xs, ys)
    assert [heights[x] for x in (0, 4, 20)] == pytest.approx([10, 6, 10], abs=0.1)
    assert heights[10] < 5


def test_layers_of_several_cells_are_drawn_together_with_a_curve(build: Build) -> None:
    place = build([(1.0, 0.5, 1.5), (2.0, None, None)], settings=lambda i: {"model": f"m{i}"})
    layout = StudyLayout(place)
    table = pq.ParquetFile(layout.table).read()
    rows = [
        {**row, "layer": layer, "mean": row["mean"] + depth, "low": None, "high": None}
        for row in table.to_pylist()
        for depth, layer in enumerate(("conv1", "conv2", "fc1"))
    ]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), layout.table)
    (drawn,) = [each for each in drawings(place) if "fc1" in each]
    assert "LOWESS" in drawn and "m0" in drawn and "m1" in drawn


def test_correlated_metrics_are_drawn_against_each_other(build: Build) -> None:
    common = {"metric": "i2f", "against": "mse", "comparison": ">=", "value": 0.5, "met": True}
    pairs = [[10.0**-k, 10.0 ** (-2 * k)] for k in range(8)]
    place = build(
        expectations=[
            {**common, "measured": 1.0, "cells": ["cell-0", "cell-1"], "pairs": pairs},
            {**common, "measured": 1.0, "cells": ["cell-0"], "pairs": pairs[:4]},
        ]
    )
    (drawn,) = [f for f in figures(read_study(place)) if "against i2f" in f.title]
    assert drawn.title == "mse against i2f, all"
    svg = base64.b64decode(drawn.source.partition(",")[2]).decode()
    assert "LOWESS" in svg and "i2f" in svg
