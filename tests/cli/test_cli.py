"""The command line: what it prints, what it returns, what it writes."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedleak import __version__, cli, reporting
from fedleak.reporting import SummaryRow

Fedleak = Callable[..., Any]
COMMANDS = ["init", "validate", "run", "audit", "report", "list", "schema"]


def strict(text: str) -> Any:
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def fits(text: str) -> bool:
    return all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(fedleak: Fedleak, command: str) -> None:
    told = fedleak(command, "--help")
    assert told.code == 0
    assert f"Example: fedleak {command}" in told.out
    assert fits(told.out)


def test_the_command_alone_and_its_version(fedleak: Fedleak) -> None:
    alone = fedleak()
    assert "fedleak run scenarios/quickstart.toml" in alone.out + alone.err
    for command in COMMANDS:
        assert f" {command} " in alone.out + alone.err
    assert fits(alone.out + alone.err)
    assert fedleak("--version").out == f"{__version__}\n"


def test_init_writes_what_runs(fedleak: Fedleak) -> None:
    made = fedleak("init", "mine.toml")
    assert made.code == 0
    assert "fedleak run mine.toml" in made.out
    small = ["--set", "federation.rounds=1", "--set", "audit.attacks.0.iterations=2"]
    ran = fedleak("run", "mine.toml", "--out", "here", *small)
    assert ran.code == 0
    assert Path("here/report/index.html").exists()
    again = fedleak("init", "mine.toml")
    assert again.code == 6
    assert "mine.toml exists already" in again.words


def test_validate(fedleak: Fedleak) -> None:
    told = fedleak("validate", "tiny.toml")
    assert told.code == 0
    assert told.out.startswith("tiny.toml is valid.\nClients: 2, with 719 training samples each.\n")
    uneven = fedleak("validate", "tiny.toml", "--set", "federation.clients=3")
    assert "Clients: 3, with 479 to 480 training samples each." in uneven.out
    assert fits(told.out)
    assert sorted(path.name for path in Path().iterdir()) == ["tiny.toml"]
    content = strict(fedleak("validate", "tiny.toml", "--json").out)
    assert content["valid"] is True
    assert content["samples_per_client"] == [719, 719]
    assert content["disk"] > 0


def test_overrides_reach_the_run(fedleak: Fedleak) -> None:
    told = fedleak(
        "run", "tiny.toml", "--out", "run", "--set", "client.lr=0.25", "--set", "name=other"
    )
    assert told.code == 0
    resolved = tomllib.loads(Path("run/scenario.toml").read_text())
    assert resolved["client"]["lr"] == 0.25
    assert resolved["name"] == "other"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in a folder of its own, made in a process of its own."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "tiny.toml").write_text(
        """
        data = { kind = "digits" }
        model = { kind = "mlp" }
        federation = { clients = 2, rounds = 1 }
        audit = { attacks = [{ kind = "analytic" }] }
        """
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from fedleak.cli import main; main()",
            "run",
            "tiny.toml",
            "--json",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    content = strict(done.stdout)
    assert len(content["cells"]) == 2
    return folder / str(content["run"])


@pytest.fixture
def finished(ran: Path, fedleak: Fedleak, tmp_path: Path) -> Path:
    """A copy of it under the working directory."""
    shutil.copytree(ran, tmp_path / "run")
    return Path("run")


def test_a_run_lands_under_runs_with_its_page(ran: Path) -> None:
    assert ran.parent.name == "runs"
    assert ran.name.startswith("run-2")
    assert (ran / "report" / "index.html").exists()


def test_run_shows_the_table_and_the_page(fedleak: Fedleak) -> None:
    told = fedleak("run", "tiny.toml")
    assert told.code == 0
    assert "2 of 2 audited samples were reconstructed" in told.out
    assert "client-000" in told.out
    assert "client-001" in told.out
    page = Path(told.out.strip().splitlines()[-1].removeprefix("Page: "))
    assert page.exists()
    assert fits(told.out)
    assert "Federation" in told.err
    assert "Audit" in told.err


def test_a_run_without_attacks_only_captures(fedleak: Fedleak) -> None:
    told = fedleak("run", "tiny.toml", "--out", "run", "--set", "audit.attacks=[]")
    assert told.code == 0
    assert "Captured 1 rounds in run" in told.out
    assert not Path("run/audit").exists()
    told = fedleak("run", "tiny.toml", "--out", "run2", "--set", "audit.attacks=[]", "--json")
    assert strict(told.out) == {"run": "run2"}


def test_audit_adds_to_a_run(fedleak: Fedleak, finished: Path) -> None:
    chosen = ["--attack", "gs", "--set", "gs.iterations=2", "--rounds", "1", "--clients", "1"]
    told = fedleak("audit", "run", *chosen)
    assert told.code == 0
    assert len(list((finished / "audit" / "cells").glob("*.json"))) == 3
    assert "gs" in told.out
    assert fits(told.out)
    (gs,) = (finished / "audit" / "cells").glob("*.gs-*.json")
    assert json.loads(gs.read_text())["parameters"]["iterations"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--attack", "gs", "--set", "gs.initialisation=nonsense"],
            ["--attack gs: initialisation 'nonsense' is neither uniform, normal nor grey"],
        ),
        (["--attack", "gz"], ["--attack: 'gz' is not one of", "Did you mean 'gs'?"]),
        (["--rounds", "7"], ["--rounds: no round 7 was captured; there are 1"]),
        (
            ["--rounds", "9", "--clients", "17"],
            ["--rounds: no round 9", "no capture of client-017"],
        ),
        (["--actors", "2"], ["--actors: is for Ray's actors; add --executor ray"]),
    ],
)
def test_an_audit_that_cannot_be_is_refused(
    fedleak: Fedleak, finished: Path, options: list[str], said: list[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    told = fedleak("audit", "run", *options)
    assert told.code == 2
    assert all(words in told.words for words in said)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_rows_of_one_attack_show_in_what_they_differ(fedleak: Fedleak, finished: Path) -> None:
    for tv in ("0.25", "0.5"):
        settings = ["--set", "gs.iterations=2", "--set", f"gs.tv={tv}"]
        told = fedleak("audit", "run", "--attack", "gs", *settings)
    assert "gs tv=0.25 " in told.out
    assert "gs tv=0.5 " in told.out
    assert fits(told.out)


def test_a_run_cannot_be_run_again_but_audited(fedleak: Fedleak, finished: Path) -> None:
    told = fedleak("run", "run")
    assert told.code == 2
    assert "`fedleak audit run` adds attacks, `fedleak report run` shows its results" in told.words


def test_defenses_and_short_batches_are_told(fedleak: Fedleak) -> None:
    defenses = "[{kind='gradient-pruning'}, {kind='update-noise', clip=0.5}]"
    told = fedleak(
        "run", "tiny.toml", "--out", "run", "--set", f"client.defenses={defenses}",
        "--set", "client.batch_size=1000",
    )  # fmt: skip
    words = " ".join(told.out.split())
    assert "Defenses: gradient-pruning, update-noise (norm 0." in words
    note = "client.batch_size is 1000, more than the samples of 2 of 2 clients (the fewest: 719)"
    assert note in words
    assert note in " ".join(
        fedleak("validate", "tiny.toml", "--set", "client.batch_size=1000").out.split()
    )


def test_the_package_is_the_command(finished: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedleak", "report", "run"], capture_output=True, timeout=120
    )
    assert done.returncode == 0
    assert b"Page: run/report/index.html" in done.stdout


def test_a_finished_audit_says_so(fedleak: Fedleak, finished: Path) -> None:
    told = fedleak("audit", "run")
    assert told.code == 0
    assert "every attack was finished before" in told.err


def test_report_again(fedleak: Fedleak, finished: Path) -> None:
    (finished / "report" / "index.html").unlink()
    told = fedleak("report", "run")
    assert told.code == 0
    assert "Page: run/report/index.html" in told.out
    assert (finished / "report" / "index.html").exists()
    content = strict(fedleak("report", "run", "--json").out)
    assert content["run"] == "run"
    assert {cell["client"] for cell in content["cells"]} == {"client-000", "client-001"}
    assert all(cell["psnr_median"] > 60 for cell in content["cells"])
    assert content["measures"] == [] and content["notes"] == []


def test_json_has_null_for_what_is_no_number(
    fedleak: Fedleak, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = SummaryRow(
        cell="c", round=1, client="client-000", attack="gs", settings="", status="done",
        samples=1, found=1, reconstructed=1, psnr_median=float("inf"), psnr_best=float("inf"),
        ssim=float("nan"), tokens_median=None, tokens_best=None,
        label_recovered=-float("inf"), seconds=0.5, reason="",
    )  # fmt: skip
    monkeypatch.setattr(reporting, "summary", lambda directory: [row])
    (cell,) = strict(fedleak("report", "run", "--json").out)["cells"]
    assert cell["psnr_best"] is cell["psnr_median"] is cell["ssim"] is None
    assert cell["label_recovered"] is None
    assert cell["seconds"] == 0.5


def test_expectations_set_the_exit_code(fedleak: Fedleak) -> None:
    met = '{ metric = "psnr", comparison = ">=", value = 50.0, source = "by hand" }'
    missed = '{ metric = "psnr", comparison = "<=", value = 10.0 }'
    told = fedleak("run", "tiny.toml", "--out", "a", "--set", f"expect=[{met}]")
    assert told.code == 0
    assert "by hand" in told.out
    told = fedleak("run", "tiny.toml", "--out", "b", "--set", f"expect=[{met}, {missed}]")
    assert told.code == 3
    assert "Error: 1 of 2 expectations were missed" in told.words
    assert "NO" in told.out
    assert fits(told.out)
    told = fedleak("run", "tiny.toml", "--out", "c", "--json", "--set", f"expect=[{missed}]")
    assert told.code == 3
    content = strict(told.out)
    assert content["run"] == "c"
    (verdict,) = content["expectations"]
    assert verdict["metric"] == "psnr" and verdict["met"] is False
    assert verdict["difference"] == verdict["measured"] - 10


def test_json_has_what_is_wrong(fedleak: Fedleak) -> None:
    told = fedleak("validate", "tiny.toml", "--json", "--set", "client.lr=-1", "--set", "sede=1")
    assert told.code == 2
    content = strict(told.out)
    assert content["error"] == "ScenarioError"
    assert {problem["path"] for problem in content["problems"]} == {"client.lr", "sede"}
    assert "client.lr" in told.err
    told = fedleak("report", "nowhere", "--json")
    assert told.code == 6
    assert "nowhere" in strict(told.out)["problems"][0]["message"]


def test_list_shows_every_kind_in_80_columns(fedleak: Fedleak) -> None:
    told = fedleak("list")
    assert told.code == 0
    assert fits(told.out)
    content = strict(fedleak("list", "--json").out)
    lines = told.out.splitlines()
    wide = 2 + max(len(entry["kind"]) for entries in content.values() for entry in entries)
    for table, entries in content.items():
        # An attack and a measure may have the same name.
        below = [line.strip() for line in lines].index(table) + 1
        listed = list(itertools.takewhile(str.strip, lines[below:]))
        for entry in entries:
            (line,) = [line for line in listed if line.split()[:1] == [entry["kind"]]]
            assert line.startswith(f"  {entry['kind']} ")
            # Names stand in one column, summaries in another.
            assert line[wide : wide + 2] == "  "
            assert line[wide + 2] != " "


@pytest.mark.parametrize(
    "table",
    ["data", "partition", "model", "init", "server", "attack", "measure", "score", "aggregation"],
)
def test_list_of_one_table_shows_every_parameter(fedleak: Fedleak, table: str) -> None:
    told = fedleak("list", table)
    assert told.code == 0
    assert fits(told.out)
    words = " ".join(told.out.split())
    (entries,) = strict(fedleak("list", table, "--json").out).values()
    for entry in entries:
        assert entry["kind"] in words
        assert entry["summary"] in words
        for parameter in entry["parameters"]:
            assert f"  {parameter['name']} " in told.out
        for metric in entry["metrics"]:
            # Those that differ in a number alone are named once, with the numbers after them.
            assert re.sub(r"\d\d", "NN", metric) in words
            assert all(number in words for number in re.findall(r"\d\d", metric))
    if table == "server":
        assert '= "similar-data" ' in told.out, "no word of a default is broken"
    if table == "attack":
        assert "lr = 0.1" in words
        assert "evaluations of the update map per restart" in words


def test_an_unknown_table(fedleak: Fedleak) -> None:
    told = fedleak("list", "atack")
    assert told.code == 2
    assert "Did you mean" in told.words and "'attack'?" in told.words
    assert fits(told.err)


def test_the_schema_is_json(fedleak: Fedleak) -> None:
    content = strict(fedleak("schema").out)
    assert content["title"] == "Scenario"
    assert {"data", "model", "federation", "audit", "expect"} <= set(content["properties"])


@pytest.mark.parametrize("arguments", [["rnu"], ["run"], ["run", "tiny.toml", "--sett", "a=1"]])
def test_wrong_usage(fedleak: Fedleak, arguments: list[str]) -> None:
    told = fedleak(*arguments)
    assert told.code == 2
    assert "Usage: fedleak" in told.err
    assert not Path("runs").exists()


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(directory: object, as_json: bool) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(cli, "_print_report", broken)
    monkeypatch.setattr(sys, "argv", ["fedleak", "report", "x"])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main()
