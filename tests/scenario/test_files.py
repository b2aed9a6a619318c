"""Files that scenarios make: the template and a new run directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedleak.auditor import audit
from fedleak.errors import ResourceError
from fedleak.federation import run
from fedleak.scenario import load_scenario
from fedleak.scenario.run_directory import new_run
from fedleak.scenario.template import write_template

Tiny = Callable[..., dict[str, Any]]


def test_the_template_is_valid_and_runs(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    write_template(path)
    scenario = load_scenario(path, ["audit.attacks.0.iterations=3", "federation.rounds=1"])
    audited = audit(run(scenario, directory=tmp_path / "run"))
    assert {row["attack"] for row in audited.rows} == {"gs"}
    assert len({row["client"] for row in audited.rows}) == 4


def test_what_the_template_shows_in_comments_is_valid_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    write_template(path)
    text = path.read_text()
    for commented in ("max_samples", "clients_per_round", "rounds = [1]", "clients = [0, 1]"):
        assert f"# {commented}" in text
        text = text.replace(f"# {commented}", commented)
    shown, study = text.index("# [[expect]]"), text.index("# A study:")
    text = text[:shown] + text[shown:study].replace("# ", "").replace("\nA published", "\n# A")
    path.write_text(text)
    scenario = load_scenario(path)
    assert scenario.federation.clients_per_round == 2
    assert scenario.audit.clients == (0, 1)
    assert scenario.expect[0].attack == "gs"


def test_the_template_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("precious")
    with pytest.raises(ResourceError, match=r"mine.toml exists already"):
        write_template(path)
    assert path.read_text() == "precious"
    with pytest.raises(ResourceError, match=r"there is no directory .*nowhere; make it"):
        write_template(tmp_path / "nowhere" / "mine.toml")


def test_a_run_directory_says_what_ran_where(tiny: Tiny, tmp_path: Path) -> None:
    scenario = load_scenario(tiny())
    layout = new_run(scenario, tmp_path / "runs")
    assert layout.root.parent == tmp_path / "runs"
    assert layout.root.name.startswith("tiny-2")
    assert load_scenario(layout.scenario) == scenario
    environment = json.loads(layout.environment.read_text())
    assert {"torch", "flwr", "python", "machine", "started"} <= set(environment)
    assert environment["torch"]


def test_runs_of_the_same_second_do_not_meet(tiny: Tiny, tmp_path: Path) -> None:
    scenario = load_scenario(tiny())
    places = {new_run(scenario, tmp_path).root for _ in range(3)}
    assert len(places) == 3


def test_a_run_directory_is_never_taken_over(tiny: Tiny, tmp_path: Path) -> None:
    scenario = load_scenario(tiny())
    with pytest.raises(ResourceError, match="exists already; runs are never overwritten"):
        new_run(scenario, tmp_path, tmp_path)
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(ResourceError, match=r"cannot make .*is a file; name another"):
        new_run(scenario, blocker)
