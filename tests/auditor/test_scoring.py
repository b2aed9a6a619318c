"""Scores of reconstructions whose distance from the truth is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from fedleak.auditor import Subject, audit, subject_of_scenario
from fedleak.captures import RunLayout
from fedleak.records import Observation, Reconstruction, Truth
from fedleak.scenario import Prepared, Scenario

Script = Callable[[torch.Tensor, torch.Tensor], Reconstruction]


@pytest.fixture
def scores(
    directory: Path, scripted: Any, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Script], dict[str, list[float]]]:
    """Audit one capture with an attack that makes this of the truth: values by metric."""

    def score(made_of: Script) -> dict[str, list[float]]:
        truth = prepared.truth(0, 1)

        def script(_: Observation) -> Reconstruction:
            return made_of(torch.from_numpy(truth.inputs), torch.from_numpy(truth.labels))

        monkeypatch.setattr(scripted, "script", staticmethod(script))
        rows = audit(directory, attacks=[scripted()], rounds=[1], clients=["client-000"]).rows
        values: dict[str, list[float]] = {"match": [row["match"] for row in rows[:3]]}
        for row in rows:
            values.setdefault(row["metric"], []).append(row["value"])
        return values

    return score


def test_an_exact_reconstruction(scores: Callable[[Script], dict[str, list[float]]]) -> None:
    found = scores(lambda x, y: Reconstruction(x, y, torch.ones(3)))
    assert found["match"] == [0, 1, 2]
    assert found["mse"] == [0, 0, 0]
    assert found["psnr"] == [100, 100, 100]
    assert found["ssim"] == pytest.approx([1, 1, 1])
    assert found["label-accuracy"] == [1, 1, 1]


def test_a_known_error_in_another_order(
    scores: Callable[[Script], dict[str, list[float]]],
) -> None:
    def shifted(x: torch.Tensor, y: torch.Tensor) -> Reconstruction:
        # Half of the pixels is off by 0.2: MSE 0.02, whatever the pixels are.
        error = torch.zeros_like(x)
        error[..., ::2] = 0.2
        order = torch.tensor([2, 0, 1])
        wrong = torch.stack([y[0], (y[1] + 1) % 10, y[2]])
        return Reconstruction((x + error)[order], wrong[order], torch.ones(3))

    found = scores(shifted)
    assert found["match"] == [1, 2, 0]
    assert found["mse"] == pytest.approx([0.02] * 3, rel=1e-5)
    assert found["psnr"] == pytest.approx([-10 * np.log10(0.02)] * 3, rel=1e-5)
    assert found["label-accuracy"] == [1, 0, 1]
    assert all(value < 1 for value in found["ssim"])


def test_samples_that_were_not_found(scores: Callable[[Script], dict[str, list[float]]]) -> None:
    found = scores(lambda x, y: Reconstruction(x[1:2], y[1:2], torch.ones(1)))
    assert found["match"] == [-1, 0, -1]
    assert found["label-accuracy"] == [0, 1, 0]
    np.testing.assert_array_equal(found["psnr"], [np.nan, 100, np.nan])


def test_an_attack_that_says_nothing_about_labels(
    scores: Callable[[Script], dict[str, list[float]]],
) -> None:
    found = scores(lambda x, y: Reconstruction(x, None, torch.ones(3)))
    assert np.isnan(found["label-accuracy"]).all()
    assert found["mse"] == [0, 0, 0]


def test_the_originals_are_kept_for_the_report(
    directory: Path, scripted: Any, prepared: Prepared
) -> None:
    audit(directory, attacks=[scripted()], rounds=[2])
    for client in (0, 1):
        path = RunLayout(directory).original(2, f"client-00{client}")
        kept = safetensors.numpy.load(path.read_bytes())
        truth = prepared.truth(client, 2)
        np.testing.assert_array_equal(kept["inputs"], truth.inputs)
        np.testing.assert_array_equal(kept["labels"], truth.labels)


def subject_with(scenario: Scenario, truth: Callable[[int, str], Truth | None]) -> Subject:
    made = subject_of_scenario(scenario)
    return Subject(made.model, made.input_shape, made.classes, made.seed, truth)


def test_without_truth_nothing_is_scored(
    directory: Path, scripted: Any, scenario: Scenario
) -> None:
    audited = audit(
        directory, attacks=[scripted()], subject=subject_with(scenario, lambda round, client: None)
    )
    assert audited.rows == ()
    assert len(scripted.calls) == 4
    assert not RunLayout(directory).original(1, "client-000").exists()


def test_a_corrected_truth_replaces_the_pictures_too(
    directory: Path, scripted: Any, scenario: Scenario, prepared: Prepared
) -> None:
    def wrong(round: int, client: str) -> Truth:
        return Truth(np.ones((3, 1, 8, 8), np.float32), np.zeros(3, np.int64))

    first = audit(directory, attacks=[scripted()], subject=subject_with(scenario, wrong))
    assert [row["value"] for row in first.rows if row["metric"] == "mse"] == [1] * 12
    audit(directory, attacks=[scripted()])
    kept = safetensors.numpy.load(RunLayout(directory).original(1, "client-000").read_bytes())
    np.testing.assert_array_equal(kept["inputs"], prepared.truth(0, 1).inputs)
    assert len(scripted.calls) == 4


def test_reconstructions_of_another_shape_are_left_out(
    directory: Path, scripted: Any, scenario: Scenario
) -> None:
    def flat(round: int, client: str) -> Truth:
        return Truth(np.ones((3, 64), np.float32), np.zeros(3, np.int64))

    assert audit(directory, attacks=[scripted()], subject=subject_with(scenario, flat)).rows == ()


def test_several_attacks_are_scored_side_by_side(directory: Path, scripted: Any) -> None:
    from fedleak.attacks import Analytic

    rows = audit(directory, attacks=[scripted(), Analytic()], rounds=[1]).rows
    assert {row["attack"] for row in rows} == {"scripted", "analytic"}
    best = max(
        row["value"] for row in rows if row["attack"] == "analytic" and row["metric"] == "psnr"
    )
    assert best > 60


def test_an_extraction_has_scores_of_the_whole_cell(
    directory: Path, prepared: Prepared, scripted: Any
) -> None:
    """Counted by hand from which samples activate which neurons."""
    from fedleak.attacks import Analytic

    rows = audit(
        directory, attacks=[scripted(), Analytic()], rounds=[1], clients=["client-000"]
    ).rows
    whole = {row["metric"]: row["value"] for row in rows if row["sample"] == -1}
    assert {row["attack"] for row in rows if row["sample"] == -1} == {"analytic"}
    model, truth = prepared.model(), prepared.truth(0, 1)
    layer = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
    with torch.no_grad():
        on = layer(torch.from_numpy(truth.inputs).flatten(1)) > 0
    alone = on.sum(0) == 1
    assert whole["active-neurons"] == pytest.approx(float(on.any(0).double().mean()))
    assert whole["extraction-precision"] == pytest.approx(float(alone.double().mean()))
    assert whole["extraction-precision-active"] == pytest.approx(
        int(alone.sum()) / int(on.any(0).sum())
    )
    assert whole["extraction-recall"] == pytest.approx(float(on[:, alone].any(1).double().mean()))
