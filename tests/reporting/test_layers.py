"""What measures gave, by layer: medians, intervals, charts, the terminal's lines."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from fedleak.reporting import write_page
from fedleak.reporting.layers import headlines, layer_charts, measured_rows, refuted
from fedleak.reporting.results import read_results
from fedleak.reporting.terminal import terminal_report
from tests.reporting.conftest import RunBuilder


@pytest.fixture
def measured(builder: RunBuilder) -> Path:
    """Two clients, two layers: per sample, and for one client with an interval."""
    builder.round(1, ["client-000", "client-001"])
    first = builder.measure(1, "client-000", "slope")
    builder.value(first, "slope-norm", 1.0, "conv1", sample=0)
    builder.value(first, "slope-norm", 3.0, "conv1", sample=1)
    builder.value(first, "slope-norm", 10.0, "fc1", low=8.0, high=12.0)
    builder.value(first, "slope-norm", 99.0, "fc1", sample=0)
    builder.value(first, "slope-norm", math.nan, "fc2")
    second = builder.measure(1, "client-001", "slope")
    builder.value(second, "slope-norm", 8.0, "conv1", sample=0)
    builder.measure(1, "client-001", "reach", status="failed", reason="no such direction")
    return builder.write()


def test_medians_over_clients_and_samples_in_the_models_order(measured: Path) -> None:
    conv, dense = measured_rows(read_results(measured))
    assert (conv.layer, conv.value, conv.greatest, conv.values) == ("conv1", 3.0, 8.0, 3)
    assert math.isnan(conv.low)
    # The value of all samples stands for those of single ones, with its interval.
    assert (dense.layer, dense.value, dense.low, dense.high) == ("fc1", 10.0, 8.0, 12.0)


def test_the_headline_is_where_it_is_greatest(measured: Path) -> None:
    (headline,) = headlines(measured_rows(read_results(measured)))
    assert headline.most.layer == "fc1"
    assert len(headline.rows) == 2


def test_a_chart_for_each_metric_that_has_layers(measured: Path) -> None:
    (chart,) = layer_charts(read_results(measured))
    drawn = base64.b64decode(chart.source.partition(",")[2]).decode()
    assert "conv1" in drawn and "fc1" in drawn and "slope-norm" in drawn


def test_metrics_that_differ_in_a_number_share_a_chart(builder: RunBuilder) -> None:
    builder.round(1, ["client-000"])
    cell = builder.measure(1, "client-000", "usable-original")
    for tau in ("05", "50"):
        for layer, value in (("conv1+conv2", 2.0), ("conv2+fc1", 1.0)):
            builder.value(cell, f"usable-original-{tau}", value, layer, low=0.5, high=3.0)
            builder.value(cell, f"usable-original-{tau}-idlg", value, layer, low=0.5, high=3.0)
    charts = layer_charts(read_results(builder.write()))
    titles = [chart.title for chart in charts]
    assert titles == ["usable-original by layer", "usable-original-idlg by layer"]
    drawn = base64.b64decode(charts[0].source.partition(",")[2]).decode()
    assert ">05<" in drawn and ">50<" in drawn and charts[0].left_out == 0


def test_terminal_and_page_tell_it(measured: Path) -> None:
    console = Console(width=80, record=True)
    console.print(terminal_report(measured))
    told = console.export_text()
    assert "No attack was run" in told
    assert "fc1, round 1" in told and "8 to 12" in told
    assert "failed: reach on 1 update: no such direction" in told
    page = write_page(measured).read_text()
    assert "Where it leaks" in page and "conv1" in page


def test_what_was_claimed_is_told_with_its_numbers(builder: RunBuilder) -> None:
    builder.round(1, ["client-000"])
    builder.value(builder.measure(1, "client-000", "slope"), "slope-norm", 1.0, "conv1")
    expected = {
        "metric": "slope-norm", "aggregate": "median", "layer": "conv1", "minus_layer": "fc1",
        "comparison": ">=", "value": 0.0, "measured": 0.25, "met": True,
        "claim": "the first layer is steeper",
    }  # fmt: skip
    ends = {"low": 0.125, "high": 0.375}
    builder.expectations = [
        expected,
        {**expected, **ends},
        {**expected, **ends, "low": -0.25},
        {**expected, "measured": -1.0, "met": False, "low": -2.0, "high": -0.5},
        {**expected, "measured": -1.0, "met": False, "low": -2.0, "high": 0.0},
        {**expected, **ends, "comparison": "==", "value": 0.5, "tolerance": 0.25},
        {**expected, "measured": None, "met": False},
    ]
    told = [e.verdict() for e in read_results(builder.write()).expectations]
    words = [said.partition(": the first layer")[0] for said in told if said]
    assert words == [
        "Seen, without an interval", "Seen", "Undecided", "Not seen", "Undecided", "Undecided",
        "Not measured",
    ]  # fmt: skip
    assert told[2] == (
        "Undecided: the first layer is steeper (median slope-norm conv1 minus fc1 is 0.25, 95 % "
        "interval −0.25 to 0.375; ≥ 0 was expected)."
    )


def test_a_claim_that_is_refuted_is_told_first_and_in_red(builder: RunBuilder) -> None:
    builder.round(1, ["client-000", "client-001"])
    for client, bound in (("client-000", 2.5), ("client-001", 0.5)):
        cell = builder.measure(1, client, "empirical-epsilon")
        builder.value(cell, "empirical-epsilon", 0.1)
        builder.value(cell, "empirical-epsilon-gaussian", bound)
        builder.value(cell, "claimed-epsilon", 1.0)
    run = builder.write()
    (said,) = refuted(read_results(run))
    assert said.startswith("The privacy that client-000 claims in round 1 is refuted")
    assert "at least 2.5" in said
    assert said in write_page(run).read_text()
    file = io.StringIO()
    Console(width=80, file=file, force_terminal=True).print(terminal_report(run))
    assert "\x1b[1;31mThe privacy that client-000" in file.getvalue()
