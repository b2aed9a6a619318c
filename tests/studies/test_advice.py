"""Advice: the layers named are those that leak most, the protections are real runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedleak.auditor import audit
from fedleak.errors import ScenarioError
from fedleak.federation import run
from fedleak.reporting.layers import measured_rows
from fedleak.reporting.results import read_results
from fedleak.reporting.study import read_study
from fedleak.scenario import load_scenario
from fedleak.studies import Progress, advise

SCENARIO: dict[str, Any] = {
    "name": "tiny",
    "seed": 2,
    "data": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [64]},
    "federation": {"clients": 2},
    "audit": {"attacks": [{"kind": "analytic"}]},
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = run(load_scenario(SCENARIO), directory=tmp_path_factory.mktemp("advice") / "run")
    audit(place)
    return place


def test_the_first_dense_layer_is_named_and_withholding_it_hides_the_samples(
    audited: Path,
) -> None:
    told: list[Progress] = []
    advice = advise(audited, on_run=told.append)
    # Measured here, because the scenario measures nothing.
    rows = [r for r in measured_rows(read_results(audited)) if r.metric == advice.metric]
    assert advice.ranking == {
        row.layer: row.value for row in sorted(rows, key=lambda row: -row.value)
    }
    assert advice.layers[0] == next(iter(advice.ranking))
    before, *others = advice.protections
    assert before.defenses == () and before.leak is not None and before.leak > 60
    withheld = others[-1]
    assert withheld.defenses == ({"kind": "withhold", "layers": list(advice.layers)},)
    # Both layers are withheld: there is nothing to search with.
    assert set(advice.layers) == {"fc1", "fc2"} and withheld.leak is None
    assert "`gs`, which bears noise, attacked as well" in advice.notes[0]
    assert any("no differential privacy guarantee" in note for note in advice.notes)
    assert advice.hides and advice.needed and advice.best in others
    assert advice.best.accuracy == max(
        each.accuracy or 0.0 for each in others if each.leak is None or each.leak < 20
    )
    noise = {each.name: each.leak for each in others if "on all layers" in each.name}
    weak, middle, strong = noise.values()
    assert weak is not None and middle is not None
    assert weak > middle
    assert strong is None or strong < middle
    cells = {cell.name for cell in read_study(advice.study).cells}
    # What holds entries back is attacked with a mask as well.
    assert len(cells) == len(advice.protections) + 2 == told[-1].done
    # Asked again, nothing is run again.
    again: list[Progress] = []
    assert advise(audited, on_run=again.append) == advice
    assert len(again) == 1


def test_advice_needs_an_attack_and_a_scenario(audited: Path, tmp_path: Path) -> None:
    quiet = {**SCENARIO, "audit": {}}
    place = run(load_scenario(quiet), directory=tmp_path / "run")
    with pytest.raises(ScenarioError, match="no attack would show"):
        advise(place)
    (place / "scenario.toml").unlink()
    with pytest.raises(ScenarioError, match=r"no scenario\.toml"):
        advise(place)


def test_what_is_held_back_is_attacked_with_a_mask_too(tmp_path: Path) -> None:
    """Withheld layers look protected to an attack that takes their silence for zeros."""
    attack = {"kind": "gauss-newton", "restarts": 1, "iterations": 8}
    scenario = {
        **SCENARIO,
        "model": {"kind": "lenet-dlg"},
        "federation": {"clients": 1},
        "audit": {"attacks": [attack]},
    }
    place = run(load_scenario(scenario), directory=tmp_path / "run")
    audit(place)
    advice = advise(place)
    cells = read_study(advice.study).cells
    held_back = [each for each in advice.protections if not each.defenses or "noise" in each.name]
    assert len(cells) == len(advice.protections) + (len(advice.protections) - len(held_back))
    values = {v.cell: v.mean for v in read_study(advice.study).overall if v.metric == "psnr"}
    withheld = advice.protections[-1]
    unmasked, masked = (values[cells[i].name] for i in (len(advice.protections) - 1, -1))
    assert withheld.leak == max(unmasked, masked)
    assert masked > unmasked
