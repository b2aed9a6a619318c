"""The studies of Sun et al. in reduced form."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedleak.scenario import check_cells, load_study
from fedleak.studies.aggregation import aggregate
from fedleak.studies.running import run_study

PAPERS = Path(__file__).parents[2] / "scenarios" / "papers"


def test_logistic_regression_learns_under_soteria(tmp_path: Path) -> None:
    study = load_study(
        PAPERS / "sun-fig7.toml",
        [
            "matrix.client.local_epochs=[2]",
            "matrix.federation.clients_per_round=[10]",
            "federation.clients=10",
            "federation.rounds=12",
        ],
    )
    place = run_study(study, directory=tmp_path / "study")
    losses = {(row.cell, row.round): row.mean for row in aggregate(place) if row.metric == "loss"}
    assert {round for _, round in losses} >= {1, 12}
    plain, defended = (cell.name for cell in study.cells)
    assert losses[defended, 12] < 0.9 * losses[defended, 1], "it converges"
    assert losses[plain, 12] < losses[defended, 12], "and pays for it"


@pytest.mark.parametrize("name", ["sun-fig5-mnist"])
def test_its_cells_can_run(name: str) -> None:
    check_cells(load_study(PAPERS / f"{name}.toml"))
