"""What the command line asks of an audit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedleak.auditor.requests import parse_clients, parse_rounds, parse_subject, parse_tasks
from fedleak.errors import ScenarioError

NOTHING: dict[str, Any] = {
    "model": None, "input_shape": None, "mean": None, "std": None, "truth": None, "facts": [],
}  # fmt: skip


def problems(call: Callable[[], object]) -> dict[str, str]:
    with pytest.raises(ScenarioError) as caught:
        call()
    return {problem.path: problem.message for problem in caught.value.problems}


def test_rounds_and_clients() -> None:
    assert parse_rounds(None) is None
    assert parse_rounds("1,3") == [1, 3]
    assert parse_clients(None) is None
    assert parse_clients("2, 11,node-17,client-004") == [
        "client-002",
        "client-011",
        "node-17",
        "client-004",
    ]
    for text in ("", "1-3", "one"):
        found = problems(partial(parse_rounds, text))
        assert "is not a list of whole numbers" in found["--rounds"]


def test_attacks_keep_the_scenarios_parameters(directory: Path) -> None:
    assert parse_tasks(directory, [], [], []) == {}
    path = directory / "scenario.toml"
    path.write_text(path.read_text().replace("tolerance = 0.01", "tolerance = 0.25"))
    analytic, gs = parse_tasks(directory, ["analytic", "gs"], [], ["gs.iterations=9"])["attacks"]
    assert analytic.model_dump()["tolerance"] == 0.25
    assert gs.model_dump()["iterations"] == 9
    (only,) = parse_tasks(directory, [], [], ["analytic.tolerance=0.5"])["attacks"]
    assert only.model_dump()["tolerance"] == 0.5


def test_bad_attacks_are_told_by_option(directory: Path, tmp_path: Path) -> None:
    found = problems(
        lambda: parse_tasks(directory, ["gs", "gz"], [], ["gs.iteratons=9", "gs.restarts=0"])
    )
    assert set(found) == {"--attack", "--set gs.iteratons", "--set gs.restarts"}
    assert "'gz' is not one of: analytic" in found["--attack"]
    assert "Did you mean 'iterations'?" in found["--set gs.iteratons"]
    for setting in ("gs.lr=1", "analytic=1", "nonsense.x=1"):
        message = problems(partial(parse_tasks, directory, ["analytic"], [], [setting]))["--set"]
        assert "sets nothing that is asked for (analytic)" in message
    message = problems(lambda: parse_tasks(tmp_path, [], [], ["gs.lr=1"]))["--set"]
    assert "(none)" in message
    assert "NAME=VALUE" in problems(lambda: parse_tasks(directory, [], [], ["gs.lr"]))["--set"]


OWN = """
import numpy as np
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 5)

    def forward(self, x):
        return self.layer(x.flatten(1))

class Odd(Net):
    def forward(self, x):
        return {"logits": super().forward(x)}

def truth(round, client):
    return np.full((2, 3, 2, 2), 0.5), [round, 4]

def unscaled(round, client):
    return np.full((2, 3, 2, 2), 255), [round, 4]

def flat(round, client):
    return np.zeros((2, 12)), [0, 1]

def unknown(round, client):
    return None
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "own_parts_of_an_auditor"
    (tmp_path / f"{name}.py").write_text(OWN)
    (tmp_path / f"{name}_broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def test_a_subject_of_the_users_own(own: str) -> None:
    assert parse_subject(**NOTHING) is None
    subject = parse_subject(
        **{
            **NOTHING,
            "model": f"{own}:Net",
            "input_shape": "3,2,2",
            "truth": f"{own}:truth",
            "facts": ["lr=0.5", "epochs=2"],
        }
    )
    assert subject is not None
    assert subject.input_shape == (3, 2, 2)
    assert subject.classes == 5
    assert subject.facts == {"lr": 0.5, "epochs": 2}
    truth = subject.truth(3, "client-000")
    assert truth is not None
    assert truth.inputs.dtype == np.float32
    np.testing.assert_array_equal(truth.labels, [3, 4])


def test_what_is_stated_keeps_cells_apart(own: str) -> None:
    def assumptions(**stated: Any) -> object:
        given = {**NOTHING, "model": f"{own}:Net", "input_shape": "3,2,2", **stated}
        subject = parse_subject(**given)
        assert subject is not None
        return subject.assumptions

    assert assumptions() == assumptions(truth=f"{own}:truth")
    different = [assumptions(), assumptions(facts=["lr=1"]), assumptions(facts=["lr=2"])]
    different.append(assumptions(mean="0.5,0.5,0.5"))
    assert all(a != b for i, a in enumerate(different) for b in different[:i])


@pytest.mark.parametrize(
    ("options", "path", "said"),
    [
        ({"model": None}, "--input-shape", "needs --model"),
        ({"model": None, "input_shape": None, "facts": ["lr=1"]}, "--fact", "needs --model"),
        ({"model": None, "input_shape": None, "truth": "a:b"}, "--truth", "needs --model"),
        ({"input_shape": None}, "--input-shape", "is needed with --model"),
        ({"input_shape": "3x2x2"}, "--input-shape", "not a list of whole numbers"),
        ({"input_shape": "3,2,3"}, "--input-shape", "does not take inputs (3, 2, 3)"),
        ({"model": "OWN"}, "--model", "not of the form module:Class"),
        ({"model": "no_such_module:Net"}, "--model", "No module named 'no_such_module'"),
        ({"model": "OWN:Nett"}, "--model", "has no 'Nett'"),
        ({"model": "OWN_broken:Net"}, "--model", "ZeroDivisionError"),
        ({"model": "OWN:truth"}, "--model", "missing a required argument"),
        ({"model": "OWN:Odd"}, "--model", "must give logits"),
        ({"truth": "OWN:nothing"}, "--truth", "has no 'nothing'"),
        ({"facts": ["lrr=1"]}, "--fact", "Did you mean 'lr'?"),
        ({"facts": ["lr"]}, "--fact", "NAME=VALUE"),
        ({"facts": ["lr=fast"]}, "--fact", "needs a number"),
        ({"facts": ["lr=-1"]}, "--fact", "needs a number, 0 or above"),
        ({"facts": ["lr=nan"]}, "--fact", "needs a number"),
        ({"mean": "0.5"}, "--mean", "3"),
        ({"mean": "a,b,c"}, "--mean", "not a list of numbers"),
    ],
)
def test_bad_options(own: str, options: dict[str, Any], path: str, said: str) -> None:
    given = {**NOTHING, "model": f"{own}:Net", "input_shape": "3,2,2", **options}
    named = {k: v.replace("OWN", own) if isinstance(v, str) else v for k, v in given.items()}
    found = problems(lambda: parse_subject(**named))
    assert list(found) == [path]
    assert said in found[path]


@pytest.mark.parametrize(("function", "said"), [("unscaled", "255"), ("flat", "(2, 12)")])
def test_a_truth_that_does_not_fit(own: str, function: str, said: str) -> None:
    subject = parse_subject(
        **{**NOTHING, "model": f"{own}:Net", "input_shape": "3,2,2", "truth": f"{own}:{function}"}
    )
    assert subject is not None
    message = problems(lambda: subject.truth(1, "client-000"))["--truth"]
    assert said in message
    assert "round 1, client-000" in message


def test_truth_may_be_unknown(own: str) -> None:
    subject = parse_subject(
        **{**NOTHING, "model": f"{own}:Net", "input_shape": "3,2,2", "truth": f"{own}:unknown"}
    )
    assert subject is not None
    assert subject.truth(1, "node-17") is None
