"""What a reader must know beside the scores: of another app's trap weights, too."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedleak import audit, load_scenario, run
from fedleak.attacks import Analytic
from fedleak.auditor import subject_of_model
from fedleak.auditor.notes import read_notes
from fedleak.captures import RunLayout
from fedleak.measures import InversionInfluence, JacobianSensitivity

SCENARIO: dict[str, Any] = {
    "data": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [40]},
    "federation": {"clients": 2},
    "client": {"batch_size": 8},
    "audit": {"attacks": [{"kind": "analytic"}]},
}
OWN = """
from collections import OrderedDict
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        layers = {"flatten": nn.Flatten(), "fc1": nn.Linear(64, 40), "act1": nn.ReLU()}
        super().__init__(OrderedDict(layers, fc2=nn.Linear(40, 10)))
"""
TRAP = {"kind": "trap-weights", "scaling": 0.6}
SHIFTED = {"mean": [0.5], "std": [0.5]}

Tables = dict[str, Any]
Audited = Callable[[Tables, Tables, Tables], tuple[str, ...]]


@pytest.fixture
def audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Audited:
    """Notes on the captures of another app: its server, its model, and what is stated of that."""
    (tmp_path / "app_of_another.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def notes(server: Tables, model: Tables, stated: Tables) -> tuple[str, ...]:
        scenario = load_scenario(SCENARIO | {"server": server, "model": SCENARIO["model"] | model})
        layout = RunLayout(run(scenario, directory=tmp_path / "run"))
        layout.scenario.unlink()
        facts = {name: tuple(values) for name, values in stated.items()}
        subject = subject_of_model("app_of_another:Net", (1, 8, 8), **facts)
        audit(layout.root, attacks=[Analytic()], subject=subject)
        return read_notes(layout)

    return notes


def test_what_is_said_of_a_measure_stays_when_another_is_added(tmp_path: Path) -> None:
    layout = RunLayout(run(load_scenario(SCENARIO), directory=tmp_path / "run"))
    noted = InversionInfluence(samples=1, exact=False)
    audit(layout.root, attacks=[], measures=[noted])
    assert noted.note in read_notes(layout)
    audit(layout.root, attacks=[], measures=[JacobianSensitivity(samples=1)])
    assert noted.note in read_notes(layout)


@pytest.mark.parametrize(
    ("server", "model", "stated", "told"),
    [
        (TRAP, {}, SHIFTED, True),
        (TRAP, {}, {}, False),
        (TRAP, {}, {"std": [0.5]}, False),
        # The server knows the normalisation: the trap is made for what the model is given.
        (TRAP, SHIFTED, SHIFTED, False),
        ({"kind": "honest-but-curious"}, {}, SHIFTED, False),
    ],
    ids=["missed", "as it is", "scaled only", "normalised", "no trap"],
)
def test_a_trap_for_other_samples_than_the_model_is_given(
    server: dict[str, Any],
    model: dict[str, Any],
    stated: dict[str, Any],
    told: bool,
    audited: Audited,
) -> None:
    notes = audited(server, model, stated)
    assert any("Trap weights were sent" in note for note in notes) == told


@pytest.mark.parametrize("server", [TRAP, {"kind": "honest-but-curious"}], ids=["trap", "none"])
@pytest.mark.parametrize(
    ("model", "stated", "told"),
    [(SHIFTED, {}, True), (SHIFTED, SHIFTED, False), ({}, {}, False)],
    ids=["unsaid", "said", "none to say"],
)
def test_samples_outside_of_what_attacks_look_in(
    server: dict[str, Any],
    model: dict[str, Any],
    stated: dict[str, Any],
    told: bool,
    audited: Audited,
) -> None:
    """Another app normalises what its model is given, and nobody says so."""
    notes = audited(server, model, stated)
    agreed = [note for note in notes if "Neurons agree" in note]
    assert len(agreed) == told and all("values from -1 to 1, but" in note for note in agreed)


def test_batches_that_are_smaller_than_asked_for_are_told(tmp_path: Path) -> None:
    uneven = {"partition": {"kind": "sizes", "sizes": [9, 3]}}
    layout = RunLayout(run(load_scenario(SCENARIO | uneven), directory=tmp_path / "run"))
    audit(layout.root)
    (note,) = read_notes(layout)
    assert "client.batch_size is 8, more than the samples of 1 of 2 clients (the fewest: 3)" in note
