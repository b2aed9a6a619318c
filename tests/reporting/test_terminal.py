from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console, RenderableType

from fedleak.captures import RunLayout
from fedleak.reporting import terminal_report, write_page
from fedleak.reporting.results import read_results
from fedleak.reporting.terminal import MOST_ROWS, compared

if TYPE_CHECKING:
    from tests.reporting.conftest import RunBuilder


def printed(renderable: RenderableType) -> list[str]:
    file = io.StringIO()
    Console(width=80, file=file).print(renderable)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    return lines


def words(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def test_the_answer_comes_first_then_the_worst_leak(leaky: Path) -> None:
    lines = printed(terminal_report(leaky))
    assert words(lines[:2]).startswith(
        "1 of 2 audited samples were reconstructed (PSNR ≥ 20 dB by at least one attack)."
    )
    head = next(index for index, line in enumerate(lines) if line.startswith("client "))
    assert lines[head].split() == [
        *("client", "round", "attack", "PSNR", "dB", "SSIM", "label", "recovered"),
    ]
    assert lines[head + 1].split() == ["client-000", "1", "gs", "40.0", "0.987", "yes"]
    assert lines[head + 2].split() == ["client-001", "1", "gs", "10.0", "0.123", "no"]


def test_a_note_stands_next_to_the_answer(builder: RunBuilder) -> None:
    builder.round(1, ["a"])
    builder.cell(1, "a", "gs", inputs=np.zeros((1, 1, 4, 4)), scores=[{"psnr": 10.0}])
    builder.notes = ["These are a <lower> bound."]
    run = builder.write()
    assert printed(terminal_report(run))[1:3] == ["These are a <lower> bound.", ""]
    page = write_page(run).read_text()
    assert page.index("</h1>") < page.index("These are a &lt;lower&gt; bound.") < page.index("<nav")


def test_a_ledger_from_before_there_were_measures_is_read(leaky: Path) -> None:
    path = RunLayout(leaky).results
    before = printed(terminal_report(leaky))
    pq.write_table(pq.read_table(path).drop_columns(["measure", "low", "high"]), path)
    assert printed(terminal_report(leaky)) == before


def test_reasons_follow(leaky: Path) -> None:
    text = words(printed(terminal_report(leaky)))
    assert "failed: idlg on 1 update: the loss became NaN in step 12" in text
    assert "unsupported: analytic on 1 update: the first layer is a convolution" in text


def test_expectations_are_set_against_what_was_measured(leaky: Path) -> None:
    lines = printed(compared(read_results(leaky).expectations))
    assert words(lines[1:2]) == "gs psnr ≥ 20 ± 0.5 31.25 11.25 yes Table 3"
    assert words(lines[2:3]) == "idlg ssim ≥ 0.9 – – NO Figure 2"
    assert words(lines) in words(printed(terminal_report(leaky)))


def test_a_long_list_shows_the_worst_and_says_how_many_more(builder: RunBuilder) -> None:
    builder.round(1, [])
    image = np.zeros((2, 1, 4, 4))
    for index in range(MOST_ROWS + 7):
        scores = [{"psnr": float(index), "ssim": 0.5}, {"psnr": 1.0, "ssim": 0.5}]
        builder.cell(1, f"client-{index:03d}", "gs", inputs=image, scores=scores)
    lines = printed(terminal_report(builder.write()))
    rows = [line.split() for line in lines if line.startswith("client-")]
    assert len(rows) == MOST_ROWS
    assert rows[0][:6] == ["client-026", "1", "gs", "2/2", "26.0", "13.5"]
    assert [float(row[4]) for row in rows] == sorted((float(row[4]) for row in rows), reverse=True)
    assert f"worst {MOST_ROWS} of 27; the other 7" in words(lines)


def test_hostile_and_long_names_neither_widen_nor_steer_the_terminal(builder: RunBuilder) -> None:
    client = "[red]node-\x1b[2J" + "9" * 200
    builder.round(1, [client])
    scores = [{"psnr": 50.0, "ssim": 1.0, "label-accuracy": 1.0}] * 2
    builder.cell(1, "short", "my.own.module:AttackWithALongName", scores=scores)
    # Too long for a file name, so the record's client is what counts here.
    path = builder.root / "audit" / "cells" / "round-0001.short.my.own.module:AttackWithALongName"
    record = path.with_name(path.name + ".json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "client": client}))
    builder.cell(1, "b", "gs", status="failed", reason="[bold]no\x1b[0m " + "x" * 200)
    lines = printed(terminal_report(builder.write()))
    assert "\x1b" not in "".join(lines)
    assert any(line.startswith("[red]node-�[2J") and "50.0" in line for line in lines)
    assert "[bold]no�[0m" in words(lines)


def test_without_truth_there_is_no_table_of_dashes(builder: RunBuilder) -> None:
    builder.round(1, ["a"])
    builder.cell(1, "a", "gs", inputs=np.zeros((1, 1, 4, 4)))
    assert words(printed(terminal_report(builder.write()))) == (
        "No truth is available: 1 of 1 attacks made reconstructions, and none of them can be "
        "scored."
    )
