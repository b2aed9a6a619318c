from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedleak.errors import CaptureError, ResourceError
from fedleak.reporting import summary, terminal_report, write_page
from fedleak.reporting.results import read_results
from fedleak.reporting.tables import answer, round_rows, troubles, worst_first
from fedleak.reporting.text import decibel, requirement, share

if TYPE_CHECKING:
    from tests.reporting.conftest import RunBuilder


def test_summary_has_one_row_per_cell_with_its_scores(leaky: Path) -> None:
    rows = {row.cell: row for row in summary(leaky)}
    assert list(rows) == [
        "round-0001.client-000.gs",
        "round-0001.client-000.idlg",
        "round-0001.client-001.analytic",
        "round-0001.client-001.gs",
    ]
    good = rows["round-0001.client-000.gs"]
    assert (good.round, good.client, good.attack, good.status) == (1, "client-000", "gs", "done")
    assert (good.samples, good.reconstructed) == (1, 1)
    assert (good.psnr_median, good.psnr_best, good.ssim) == (40.0, 40.0, 0.987)
    assert (good.label_recovered, good.seconds) == (1.0, 3.14)
    failed = rows["round-0001.client-000.idlg"]
    assert (failed.status, failed.reason) == ("failed", "the loss became NaN in step 12")
    assert failed.samples == 0
    assert failed.psnr_best is None and failed.ssim is None and failed.label_recovered is None


def test_scores_of_a_batch_are_medians_and_nan_or_unmatched_samples_do_not_enter_them(
    builder: RunBuilder,
) -> None:
    images = np.zeros((5, 1, 4, 4))
    builder.round(1, ["a"])
    name = builder.cell(
        1,
        "a",
        "gs",
        inputs=images,
        matches=[3, 1, 0, 2, -1],
        scores=[
            {"psnr": math.inf, "ssim": 1.0},
            {"psnr": 12.0, "ssim": 0.2},
            {"psnr": 20.0, "ssim": 0.6},
            {"psnr": math.nan, "ssim": math.nan},
            {"psnr": math.nan},
        ],
    )
    builder.score(name, -1, "label-accuracy", 0.6, -1)
    (row,) = summary(builder.write())
    assert (row.samples, row.reconstructed) == (5, 2)
    assert row.psnr_median == 20.0
    assert row.psnr_best == math.inf
    assert row.ssim == 0.6
    assert row.label_recovered == 0.6


def test_answer_counts_a_sample_once_however_many_attacks_reach_it(builder: RunBuilder) -> None:
    builder.round(1, ["a", "b"])
    images = np.zeros((2, 1, 4, 4))
    for attack, psnr in (("gs", (25.0, 5.0)), ("idlg", (30.0, 19.99))):
        builder.cell(1, "a", attack, inputs=images, scores=[{"psnr": value} for value in psnr])
    builder.cell(1, "b", "gs", inputs=images[:1], scores=[{"psnr": 20.0}])
    reply = answer(read_results(builder.write()))
    assert (reply.reconstructed, reply.samples) == (2, 3)
    assert (reply.clients_reconstructed, reply.clients) == (2, 2)
    assert reply.sentence == (
        "2 of 3 audited samples were reconstructed (PSNR ≥ 20 dB by at least one attack)."
    )


def test_answer_without_truth_and_without_any_finished_attack(builder: RunBuilder) -> None:
    builder.round(1, ["a"])
    builder.cell(1, "a", "gs", status="failed", reason="diverged")
    assert answer(read_results(builder.write())).sentence.startswith("Nothing could be scored")
    builder.cell(1, "a", "idlg", inputs=np.zeros((1, 1, 4, 4)))
    assert answer(read_results(builder.write())).sentence.startswith(
        "No truth is available: 1 of 2 attacks made reconstructions"
    )


def test_worst_leaks_come_first_and_unscored_rows_last(leaky: Path) -> None:
    assert [row.psnr_best for row in worst_first(summary(leaky))] == [40.0, 10.0, None, None]


def test_rounds_show_the_worst_leak_and_who_was_missing(leaky: Path) -> None:
    first, second = round_rows(read_results(leaky))
    assert first.worst is not None and first.worst.cell == "round-0001.client-000.gs"
    assert (first.captured, first.samples, first.reconstructed) == (2, 2, 1)
    assert first.absent == ("client-004",)
    assert first.rejected == {"client-005": "update contains NaN in fc1.weight"}
    assert first.metrics == {"accuracy": 0.4321, "loss": 1.25}
    assert second.worst is None and second.samples == 0


def test_equal_troubles_are_counted_together(builder: RunBuilder) -> None:
    builder.round(1, ["a", "b"])
    for client in ("a", "b"):
        builder.cell(1, client, "analytic", status="unsupported", reason="no dense layer")
    builder.cell(1, "a", "gs", status="failed", reason="diverged")
    found = troubles(read_results(builder.write()))
    assert [(t.task, t.status, t.reason, t.cells) for t in found] == [
        ("analytic", "unsupported", "no dense layer", 2),
        ("gs", "failed", "diverged", 1),
    ]


def test_of_a_traceback_the_line_that_names_the_error_is_shown(builder: RunBuilder) -> None:
    builder.round(1, ["a"])
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: odd shape\n'
    builder.cell(1, "a", "gs", status="failed", reason=trace)
    builder.cell(1, "a", "idlg", status="failed", reason="two lines\n  of words")
    builder.cell(1, "a", "tv", status="failed")
    assert [row.reason for row in summary(builder.write())] == [
        "ValueError: odd shape",
        "two lines of words",
        "no reason was recorded",
    ]


def test_an_expectation_may_be_measured_infinite(builder: RunBuilder) -> None:
    builder.round(1, ["a"])
    builder.cell(1, "a", "gs", status="failed", reason="diverged")
    limit = {"metric": "psnr", "comparison": ">=", "value": 20.0, "measured": math.inf, "met": True}
    builder.expectations = [limit]
    (expectation,) = read_results(builder.write()).expectations
    assert expectation.measured == math.inf and expectation.difference == math.inf


def test_a_path_that_is_no_run_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"nowhere is not a run directory.*manifest\.json"):
        summary(tmp_path / "nowhere")


@pytest.mark.parametrize("report", [summary, terminal_report, write_page])
def test_a_run_without_an_audit_names_the_remedy(builder: RunBuilder, report: object) -> None:
    builder.round(1, ["a"])
    run = builder.write()
    assert callable(report)
    with pytest.raises(ResourceError, match=f"fedleak audit {run}"):
        report(run)
    assert not (run / "report").exists()


def test_an_unfinished_audit_names_the_remedy(leaky: Path) -> None:
    (leaky / "audit" / "results.parquet").unlink()
    with pytest.raises(ResourceError, match=f"did not finish.*fedleak audit {leaky}"):
        summary(leaky)


@pytest.mark.parametrize(
    "file",
    [
        "manifest.json",
        "environment.json",
        "audit/results.parquet",
        "audit/expectations.json",
        "audit/cells/round-0001.client-000.gs.json",
        "audit/cells/round-0001.client-000.gs.safetensors",
        "audit/originals/round-0001.client-000.safetensors",
    ],
)
def test_a_file_cut_short_is_named(leaky: Path, file: str) -> None:
    path = leaky / file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CaptureError) as caught:
        write_page(leaky)
    assert str(path) in str(caught.value)
    assert not (leaky / "report").exists()


def test_a_missing_reconstruction_of_a_finished_cell_is_named(leaky: Path) -> None:
    path = leaky / "audit/cells/round-0001.client-000.gs.safetensors"
    path.unlink()
    with pytest.raises(CaptureError, match="fedleak audit") as caught:
        write_page(leaky)
    assert str(path) in str(caught.value)


def test_a_cell_with_a_wrong_value_names_the_key(leaky: Path) -> None:
    path = leaky / "audit/cells/round-0001.client-000.gs.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "status": "perhaps"}))
    with pytest.raises(CaptureError, match=r"client-000\.gs\.json is damaged: status: "):
        summary(leaky)


def test_names_that_lead_out_of_the_run_are_refused(leaky: Path) -> None:
    path = leaky / "audit/cells/round-0001.client-000.gs.json"
    record = json.loads(path.read_text())
    for change in ({"cell": "../../elsewhere"}, {"client": "../elsewhere"}):
        path.write_text(json.dumps({**record, **change}))
        with pytest.raises(CaptureError, match="elsewhere"):
            summary(leaky)


def test_numbers_are_written_for_people() -> None:
    assert [decibel(value) for value in (31.26, math.inf, -3.04, None, math.nan)] == [
        "31.3",
        "∞",
        "−3.0",
        "–",
        "–",
    ]
    assert [share(1.0, 1), share(0.0, 1), share(0.75, 4), share(None, 1)] == [
        "yes",
        "no",
        "75%",
        "–",
    ]
    assert requirement(">=", 20.0, 0.5) == "≥ 20 ± 0.5"
    assert requirement("<=", 0.125, 0.0) == "≤ 0.125"


def test_report_imports_neither_torch_nor_flower(leaky: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import fedleak.reporting as r; "
        f"r.write_page(Path({str(leaky)!r})); r.terminal_report(Path({str(leaky)!r})); "
        "print([m for m in ('torch', 'flwr', 'ray', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
