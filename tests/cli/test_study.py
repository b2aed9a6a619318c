"""Studies from the command line: what is printed, returned and written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedleak.reporting.study import read_study
from fedleak.studies import running

Fedleak = Callable[..., Any]
ROOT = Path(__file__).parents[2]

STUDY = """
name = "small"
seed = 3
repeats = 2
[matrix]
"client.batch_size" = [1, 2]
[data]
kind = "digits"
[model]
kind = "mlp"
[federation]
clients = 2
[[audit.attacks]]
kind = "analytic"
[[expect]]
metric = "psnr"
comparison = ">="
over = "client.batch_size"
values = { "1" = 60.0, "2" = 5.0 }
source = "Table 7"
"""


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def fits(text: str) -> bool:
    return all(len(line) <= 80 for line in text.splitlines())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study; not to be changed."""
    from fedleak.scenario import load_study

    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text(STUDY)
    command = "fedleak run study.toml"
    study = load_study(folder / "study.toml")
    return running.run_study(study, directory=folder / "small", command=command)


@pytest.fixture
def small(fedleak: Fedleak, ran: Path, tmp_path: Path) -> Path:
    """A copy of it under the working directory, beside its scenario."""
    (tmp_path / "study.toml").write_text(STUDY)
    shutil.copytree(ran, tmp_path / "small")
    return Path("small")


def test_run_shows_answer_expectations_and_table(fedleak: Fedleak, small: Path) -> None:
    told = fedleak("run", "study.toml")
    assert told.code == 0
    assert fits(told.out)
    lines = told.out.splitlines()
    assert lines[0].startswith("2 of 2 expected values were met.")
    words = " ".join(told.out.split())
    assert "2 cells, with 2 repeats each, by analytic." in words
    heads = [line.split() for line in lines if line.startswith("batch_size  ")]
    assert heads == [["batch_size", "median", "psnr"]] * 2, "measured; published / measured"
    assert "1 ≥ 60 / 100" in words
    assert "± half its 95 % interval (Student's t)" in words
    assert "Study: runs/small-2" in told.err
    assert "4/4" in told.err
    place = Path(lines[-1].removeprefix("Page: ")).parent.parent
    assert read_study(place).environment["command"] == "fedleak run study.toml"


def test_report_and_json(fedleak: Fedleak, small: Path) -> None:
    told = fedleak("report", "small")
    assert told.code == 0 and fits(told.out)
    assert "Page: small/report/index.html" in told.out
    content = strict(fedleak("report", "small", "--json").out)
    assert [cell["settings"] for cell in content["cells"]] == [
        {"client.batch_size": "1"}, {"client.batch_size": "2"},
    ]  # fmt: skip
    row = next(v for v in content["values"] if v["metric"] == "psnr" and v["aggregate"] == "mean")
    assert row["repeats"] == 2 and row["samples"] == 4
    assert row["low"] <= row["mean"] <= row["high"]
    assert [e["met"] for e in content["expectations"]] == [True, True]
    assert content["expectations"][0]["difference"] > 0


def test_report_of_one_run_of_a_study_has_its_pictures(fedleak: Fedleak, small: Path) -> None:
    run = "small/cells/client.batch_size=1/repeat-0"
    told = fedleak("report", run)
    assert told.code == 0
    assert f"Page: {run}/report/index.html" in told.out


def test_markdown(fedleak: Fedleak, small: Path) -> None:
    told = fedleak("report", "small", "--markdown")
    assert told.code == 0
    lines = told.out.splitlines()
    assert lines[0] == "## small"
    assert "fedleak run study.toml" in lines
    table = [line for line in lines if line.startswith("|")]
    assert table[0].startswith("| batch_size | value | published | measured | difference | met")
    assert len(table) == 4
    assert table[2].startswith("| 1 | median psnr | ≥ 60 |")
    assert table[2].endswith("| yes | Table 7 |")
    assert fedleak("report", "tiny", "--markdown").code == 2


def test_a_miss_sets_the_exit_code(fedleak: Fedleak, small: Path) -> None:
    scenario = small / "scenario.toml"
    scenario.write_text(scenario.read_text().replace("1 = 60.0", "1 = 600.0"))
    told = fedleak("run", "small")
    assert told.code == 3
    assert "Error: 1 of 2 expectations were missed" in told.words
    assert "NO" in told.out
    assert "1 of 2 expected values were met." in told.out


def test_a_stopped_study_goes_on_given_its_directory(fedleak: Fedleak, small: Path) -> None:
    shutil.rmtree(small / "cells" / "client.batch_size=2")
    told = fedleak("report", "small")
    assert "2 of 4 runs finished, 2 not run yet." in " ".join(told.out.split())
    told = fedleak("run", "small")
    assert told.code == 0
    assert "2 cells, with 2 repeats each, by analytic." in told.out
    refused = fedleak("run", "small", "--set", "repeats=3")
    assert refused.code == 2
    assert "goes on as it is" in refused.words


def test_what_was_not_run_is_not_missed(fedleak: Fedleak, small: Path) -> None:
    for cell in (small / "cells").iterdir():
        shutil.rmtree(cell)
    told = fedleak("report", "small")
    words = " ".join(told.out.split())
    assert told.code == 0
    assert "2 expected values not measured yet." in words
    assert "issed" not in words and "NO" not in words


def test_a_failed_run_sets_the_exit_code(
    fedleak: Fedleak, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(small / "cells" / "client.batch_size=2" / "repeat-1")
    (small / "cells" / "client.batch_size=2" / "repeat-1.json").unlink()

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(running, "run_federation", broken)
    told = fedleak("run", "small")
    assert told.code == 7
    assert "1 run failed; `fedleak run small` tries again" in told.words
    assert "3 of 4 runs finished, 1 failed" in " ".join(told.out.split())
    assert "client.batch_size=2 failed: ZeroDivisionError: a bug" in " ".join(told.out.split())


def test_audit_adds_an_attack_to_all_runs(fedleak: Fedleak, small: Path) -> None:
    told = fedleak("audit", "small", "--attack", "gs", "--set", "gs.iterations=2")
    assert told.code == 0
    assert "gs iterations=2" in told.out
    for more in (["--follow"], ["--model", "a:B"]):
        assert fedleak("audit", "small", *more).code == 2


def test_validate(fedleak: Fedleak, small: Path) -> None:
    told = fedleak("validate", "study.toml")
    assert told.code == 0
    assert "Study: 2 cells, 4 runs. Clients: with 719 training samples each." in told.out
    content = strict(fedleak("validate", "study.toml", "--json").out)
    assert content["cells"] == ["client.batch_size=1", "client.batch_size=2"]
    assert content["repeats"] == 2


@pytest.mark.parametrize("command", ["run", "validate"])
def test_wrong_cells_are_named_and_nothing_is_written(
    fedleak: Fedleak, small: Path, command: str
) -> None:
    before = sorted(Path().iterdir())
    told = fedleak(command, "study.toml", "--set", "matrix.client.lr=[0.1, -1]")
    assert told.code == 2
    assert "client.lr: must be above 0, not -1" in told.words
    assert "client.batch_size=1,client.lr=-1" in told.words
    told = fedleak(command, "study.toml", "--set", "matrix.model.kind=['mlp', 'lenet']")
    assert told.code == 2
    assert "model.kind: 'lenet' needs images" in told.words
    assert sorted(Path().iterdir()) == before


def test_the_study_that_comes_along(fedleak: Fedleak, tmp_path: Path) -> None:
    scenario = str(ROOT / "scenarios" / "study.toml")
    told = fedleak("run", scenario, "--set", "repeats=1", "--set", "data.kind=digits")
    assert told.code == 0, told.err
    assert "One repeat: 95 % intervals are" in told.out
    assert fits(told.out)


def test_dropout_is_told_next_to_the_answer(fedleak: Fedleak, tmp_path: Path) -> None:
    (tmp_path / "own_with_dropout.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, p):\n"
        "        super().__init__(\n"
        "            nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Dropout(p), nn.Linear(20, 10)\n"
        "        )\n"
    )
    model = ["--set", "model={kind='own_with_dropout:Net', parameters={p=0.5}}"]
    said = "a lower bound on what leaks"
    told = fedleak("validate", "tiny.toml", *model)
    assert said in " ".join(told.out.split())
    told = fedleak("run", "tiny.toml", "--out", "a", *model)
    assert said in " ".join(told.out.splitlines()[1:4])
    assert said in Path("a/report/index.html").read_text().replace("\n", " ")
    for more in (["client.train_mode=false"], ["model.parameters.p=0.0"]):
        told = fedleak("validate", "tiny.toml", *model, "--set", *more)
        assert told.code == 0 and said not in " ".join(told.out.split())
    quiet = ["--set", "client.train_mode=false"]
    assert said not in fedleak("run", "tiny.toml", "--out", "b", *model, *quiet).out
    study = ["--set", "repeats=2"]
    assert said in " ".join(fedleak("run", "tiny.toml", "--out", "c", *model, *study).out.split())
