"""The study of all defenses, in a reduced form; and every file of a paper can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedleak.reporting.study import read_study
from fedleak.reporting.study.tables import columns, trade_table, trades
from fedleak.scenario import load_scenario, load_study
from fedleak.scenario.loading import is_study, read_document
from fedleak.studies import run_study

PAPERS = Path(__file__).parents[2] / "scenarios" / "papers"
ANALYTIC = '{kind="analytic"}'
MASKED = ", mask_zeros=true"


@pytest.mark.parametrize("path", sorted(PAPERS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_file_is_valid(path: Path) -> None:
    load = load_study if is_study(read_document(path)) else load_scenario
    assert load(path).name == path.stem


def test_the_defense_matrix_says_what_defenses_cost(tmp_path: Path) -> None:
    noise = '{kind="update-noise", clip=1.0, scale=1.0}'
    private = '{kind="dp-sgd", noise_multiplier=1.0}'
    sparse = '{kind="top-k", fraction=0.1}'
    plain, masked = (f'{{kind="gs", restarts=1, iterations=3{more}}}' for more in ("", MASKED))
    study = load_study(
        PAPERS / "defense-matrix.toml",
        [
            f'matrix=[{{"client.defenses"=[[], [{noise}], [{private}]]}}, '
            f'{{"client.defenses"=[[{sparse}]], '
            f'"audit.attacks"=[[{ANALYTIC}, {plain}, {masked}]]}}, '
            '{"aggregation.secure_aggregation"=[2]}]',
            "federation.rounds=1",
            "federation.clients=2",
            "audit.rounds=[1]",
            f"audit.attacks=[{ANALYTIC}]",
        ],
    )
    results = read_study(run_study(study, directory=tmp_path / "study"))
    assert results.count("done") == 5
    heads = [column.metric for column in columns(results)]
    assert heads == [
        "psnr", "ssim", "label-accuracy", "extraction-recall", "accuracy",
        "update-noise/epsilon", "dp-sgd/epsilon", "bytes-sent", "train-seconds", "refused",
    ]  # fmt: skip
    means = {(v.cell, v.metric): v.mean for v in results.overall if v.aggregate == "mean"}
    plain, noised, private, topped, _ = (cell.name for cell in results.cells)
    # 784 x 128 + 128 + 128 x 10 + 10 entries, of which top-k sends a tenth at 8 bytes each.
    assert means[topped, "bytes-sent"] == 8 * (10035 + 13 + 128 + 1)
    assert means[plain, "bytes-sent"] > 4 * 101_770
    assert means[noised, "update-noise/epsilon"] == pytest.approx(9.997, abs=1e-3)
    assert means[private, "dp-sgd/epsilon"] > 0
    assert means[noised, "extraction-recall"] == 0 < means[plain, "extraction-recall"]
    by_leakage = {trade.leakage: trade for trade in trades(results)}
    found = by_leakage["psnr"].found
    assert set(found[topped]) == {"analytic", "gs", "gs mask_zeros=true"}
    table = trade_table(results, by_leakage["extraction-recall"])
    assert table.metrics == (
        "accuracy", "update-noise/epsilon", "dp-sgd/epsilon", "bytes-sent", "train-seconds",
        "refused", "extraction-recall of analytic", "Pareto front",
    )  # fmt: skip
    assert len(table.rows) == 5
