"""The studies of Sun et al. in reduced form."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from fedleak.reporting import report
from fedleak.reporting.study import read_study
from fedleak.reporting.study.results import StudyResults
from fedleak.reporting.study.tables import courses, trades
from fedleak.scenario import check_cells, load_study
from fedleak.studies.aggregation import aggregate
from fedleak.studies.running import run_study

PAPERS = Path(__file__).parents[2] / "scenarios" / "papers"
SOTERIA = '[{kind="soteria", rate=0.8}]'


@pytest.fixture
def real_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "FEDLEAK_DATA" not in os.environ:
        pytest.skip("set FEDLEAK_DATA to the directory with the real data sets")
    (tmp_path / "data").symlink_to(os.environ["FEDLEAK_DATA"])
    monkeypatch.chdir(tmp_path)


def finished(name: str, place: Path, overrides: Sequence[str]) -> StudyResults:
    results = read_study(run_study(load_study(PAPERS / f"{name}.toml", overrides), directory=place))
    assert {run.status for cell in results.cells for run in cell.runs} == {"done"}
    return results


def test_logistic_regression_learns_under_soteria(tmp_path: Path) -> None:
    study = load_study(
        PAPERS / "sun-fig7.toml",
        [
            "matrix.client.local_epochs=[2]",
            "matrix.federation.clients_per_round=[10]",
            "federation.clients=10",
            "federation.rounds=12",
            'expect=[{metric="loss", value=0, comparison=">=", '
            'where={"client.defenses"="[soteria features=50]"}}]',
        ],
    )
    place = run_study(study, directory=tmp_path / "study")
    losses = {(row.cell, row.round): row.mean for row in aggregate(place) if row.metric == "loss"}
    assert {round for _, round in losses} >= {1, 12}
    plain, defended = (cell.name for cell in study.cells)
    assert losses[defended, 12] < 0.9 * losses[defended, 1], "it converges"
    assert losses[plain, 12] < losses[defended, 12], "and pays for it"
    (course,) = courses(read_study(place))
    assert course.metric == "loss", "which is what the study is about"


def test_accuracy_stands_beside_what_attacks_find_and_a_mask_undoes_soteria(tmp_path: Path) -> None:
    few = f'"client.defenses"=[[], {SOTERIA}]'
    attacks = ", ".join(
        f'{{kind="gs", restarts=1, iterations=150, mask_zeros={mask}}}'
        for mask in ("false", "true")
    )
    alone = '"federation.clients_per_round"=[1], "client.batch_size"=[1], "client.local_steps"=[1]'
    results = finished(
        "sun-fig5-mnist",
        tmp_path / "study",
        [
            f'matrix=[{{{few}, "federation.rounds"=[2], "audit.attacks"=[[]]}}, '
            f'{{{few}, "federation.rounds"=[1], "federation.evaluate"=[false], {alone}}}]',
            "federation.clients=4",
            "federation.clients_per_round=2",
            f"audit.attacks=[{attacks}]",
            'expect=[{metric="mse", comparison=">=", value=0.0, attack="gs mask_zeros=true", '
            'where={"federation.rounds"=1}}]',
        ],
    )
    (trade,) = trades(results)
    tested, _, plain, defended = (cell.name for cell in results.cells)
    assert trade.leakage == "mse"
    assert set(trade.points) == {plain, defended}
    accuracy = {value.cell: value.mean for value in results.overall if value.metric == "accuracy"}
    assert accuracy[plain] == accuracy[tested] == trade.points[plain][1]
    found = {attack: value.mean for attack, value in trade.found[defended].items()}
    assert found["gs mask_zeros=true"] < 0.1 < found["gs"], found
    assert trade.points[defended][0] == found["gs mask_zeros=true"]


@pytest.mark.usefixtures("real_data")
def test_figure_6_shows_both_defenses_and_both_attacks(tmp_path: Path) -> None:
    pruned = '[{kind="gradient-pruning", scope="model", rate=0.8}]'
    results = finished(
        "sun-fig6",
        tmp_path / "study",
        [
            f"matrix.client.defenses=[{pruned}, {SOTERIA}]",
            "audit.attacks.0.iterations=100",
            "audit.attacks.0.restarts=1",
            "expect=[]",
        ],
    )
    psnr = {value.cell: value.mean for value in results.overall if value.metric == "psnr"}
    found = {
        (cell.settings["audit.attacks.0.mask_zeros"], "soteria" in cell.name): psnr[cell.name]
        for cell in results.cells
    }
    assert found["false", True] < 12 < 15 < found["true", True]
    assert found["false", False] < 15, "GC hides more than in the paper"
    page = report(results.layout.root).read_text()
    # Side by side, behind the one image that all of them are of.
    assert page.count('alt="original sample') == 1
    assert page.count('alt="reconstruction by gs') == 4


@pytest.mark.usefixtures("real_data")
def test_cifar_in_a_reduced_form(tmp_path: Path) -> None:
    check_cells(load_study(PAPERS / "sun-fig5-cifar10.toml"))
    results = finished(
        "sun-fig5-cifar10",
        tmp_path / "study",
        [
            f'matrix=[{{"client.defenses"=[{SOTERIA}], "federation.rounds"=[2], '
            f'"audit.attacks"=[[]]}}, {{"client.defenses"=[{SOTERIA}], "federation.rounds"=[1], '
            '"federation.evaluate"=[false], "federation.clients_per_round"=[1], '
            '"client.batch_size"=[1], "client.local_steps"=[1]}]',
            "federation.clients=4",
            "federation.clients_per_round=2",
            'audit.attacks=[{kind="gs", restarts=1, iterations=5}]',
            "expect=[]",
        ],
    )
    learnt, attacked = (cell.name for cell in results.cells)
    metrics = {(value.cell, value.metric) for value in results.overall}
    assert (learnt, "accuracy") in metrics
    assert (attacked, "mse") in metrics


def test_mnist_cells_can_run() -> None:
    check_cells(load_study(PAPERS / "sun-fig5-mnist.toml"))
