"""A user's own data and model, named in a scenario as ``module:name``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedleak.auditor import audit
from fedleak.errors import ScenarioError
from fedleak.federation import run
from fedleak.scenario import load_scenario, prepare

Tiny = Callable[..., dict[str, Any]]

OWN = """
import numpy as np
from torch import nn

def squares(count, side=6):
    rng = np.random.default_rng(0)
    x = rng.random((count, 1, side, side), dtype=np.float32)
    y = np.arange(count) % 2
    return x, y, x[:4], y[:4]

class Net(nn.Module):
    def __init__(self, width, side=6):
        if width > 100:
            raise KeyError("too wide")
        super().__init__()
        self.first = nn.Linear(side * side, width)
        self.last = nn.Linear(width, 2)

    def forward(self, x):
        return self.last(self.first(x.flatten(1)).relu())
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the working directory, under a name that no other test imports."""
    name = "own_parts_of_a_user"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def test_own_data_and_model_run_and_leak(tiny: Tiny, own: str, tmp_path: Path) -> None:
    scenario = load_scenario(
        tiny(
            data={"kind": f"{own}:squares", "parameters": {"count": 12}},
            model={"kind": f"{own}:Net", "parameters": {"width": 20}},
            federation={"clients": 2, "rounds": 1},
        )
    )
    prepared = prepare(scenario)
    assert prepared.splits.train.input_shape == (1, 6, 6)
    assert prepared.splits.train.classes == 2
    assert prepared.model().state_dict()["first.weight"].shape == (20, 36)
    audited = audit(run(scenario, directory=tmp_path / "run"))
    assert [row["value"] for row in audited.rows if row["metric"] == "psnr"] == pytest.approx(
        [100, 100], abs=30
    )


@pytest.mark.parametrize(
    ("tables", "path", "said"),
    [
        ({"data": {"kind": "no_such_module:make"}}, "data.kind", "no_such_module"),
        ({"data": {"kind": "OWN:nothing"}}, "data.kind", "has no 'nothing'"),
        ({"data": {"kind": "OWN:squares"}}, "data.parameters", "'count'"),
        ({"model": {"kind": "OWN:Net"}}, "model.parameters", "'width'"),
        (
            {"model": {"kind": "OWN:Net", "parameters": {"width": 101}}},
            "model.kind",
            "raised KeyError('too wide')",
        ),
        ({"model": {"kind": "OWN:Nett"}}, "model.kind", "has no 'Nett'"),
        ({"model": {"kind": "OWN:squares", "parameters": {"count": 3}}}, "model.kind", "nn.Module"),
        ({"model": {"kind": "OWN:Net", "parameters": {"width": 3}}}, "model", "(1, 8, 8)"),
    ],
)
def test_what_does_not_fit_is_told(
    tiny: Tiny, own: str, tables: dict[str, Any], path: str, said: str
) -> None:
    named = {
        table: {**entry, "kind": entry["kind"].replace("OWN", own)}
        for table, entry in tables.items()
    }
    with pytest.raises(ScenarioError) as caught:
        prepare(load_scenario(tiny(**named)))
    (problem,) = caught.value.problems
    assert problem.path == path
    assert said in problem.message
