"""Every mistake a user can make is told in a sentence, with its exit code, and harms nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Fedleak = Callable[..., Any]

SCENARIO_MISTAKES = [
    pytest.param(
        ["client.bath_size=3"], ["client.bath_size: unknown key", "'batch_size'?"], id="key"
    ),
    pytest.param(["model.kind=mlpp"], ["model.kind: 'mlpp' is not one of", "'mlp'?"], id="kind"),
    pytest.param(
        ["federation.rounds=-1"], ["federation.rounds: must be at least 1, not -1"], id="rounds"
    ),
    pytest.param(
        ["federation.clients_per_round=3"],
        ["federation.clients_per_round: 3 clients are asked each round", "federation.clients is 2"],
        id="clients per round",
    ),
    pytest.param(
        ["federation.clients=2000"],
        ["partition: 2000 clients cannot share 1438 training samples; lower the number"],
        id="more clients than samples",
    ),
    pytest.param(
        ['partition={kind="dirichlet", alpha=0.001}', "federation.clients=40"],
        ["partition: client-0", "would get fewer than 1 sample", "Raise alpha (now 0.001)"],
        id="an empty client",
    ),
    pytest.param(
        ['model={kind="lenet"}'],
        ["model.kind: 'lenet' needs images of at least 16x16 pixels, the data has 8x8"],
        id="model and data",
    ),
    pytest.param(
        ['data={kind="cifar10", root="nowhere"}'],
        ["data.root: no usable CIFAR10 under 'nowhere'", "set download = true to fetch it"],
        id="missing data set",
    ),
    pytest.param(
        ['data={kind="npz", path="nowhere/my.npz"}'],
        ["data.path: there is no file 'nowhere/my.npz'"],
        id="missing npz",
    ),
    pytest.param(
        ['data={kind="image-folder", path="nowhere", size=[8, 8]}'],
        ["data.path: there is no directory 'nowhere'"],
        id="missing folder",
    ),
    pytest.param(['data={kind="mine:make"}'], ["data.kind: No module named 'mine'"], id="own data"),
    pytest.param(
        ['audit.attacks=[{kind="gs"},{kind="gss"}]'],
        ["audit.attacks.1.kind: 'gss' is not one of", "'gs'?"],
        id="attack",
    ),
    pytest.param(["client.lr"], ["--set: 'client.lr' is not of the form key.path=value"], id="set"),
]


@pytest.mark.parametrize(("settings", "said"), SCENARIO_MISTAKES)
@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_scenario_that_cannot_run(
    fedleak: Fedleak, command: str, settings: list[str], said: list[str]
) -> None:
    overrides = [part for setting in settings for part in ("--set", setting)]
    told = fedleak(command, "tiny.toml", *overrides)
    assert told.code == 2
    assert told.out == ""
    assert "1 problem in the" in told.words
    assert "Traceback" not in told.err
    for words in said:
        assert words in told.words
    assert all(len(line) <= 80 for line in told.err.splitlines())
    assert sorted(path.name for path in Path().iterdir()) == ["tiny.toml"], "nothing was written"


def test_all_problems_at_once(fedleak: Fedleak) -> None:
    settings = ["client.lr=fast", "nme=x", "federation.clients_per_round=9", "federation.rounds=0"]
    told = fedleak("run", "tiny.toml", *(part for s in settings for part in ("--set", s)))
    assert told.code == 2
    lines = told.err.strip().splitlines()
    assert lines[0] == "4 problems in the scenario:"
    # One entry each, the rest of a long one indented further.
    entries = [line.split(":")[0] for line in lines[1:] if not line.startswith("    ")]
    assert set(entries) == {
        "  client.lr",
        "  nme",
        "  federation.clients_per_round",
        "  federation.rounds",
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no scenario file mine.toml; `fedleak init mine.toml` writes one"),
        (b"name == 3", "mine.toml is not valid TOML"),
        (b"name = '\xe4'", "mine.toml is not UTF-8 text"),
    ],
)
def test_a_scenario_file_that_cannot_be_read(
    fedleak: Fedleak, tmp_path: Path, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "mine.toml").write_bytes(content)
    for command in ("run", "validate"):
        told = fedleak(command, "mine.toml")
        assert told.code == 2
        assert said in told.words


def test_a_run_directory_that_exists(fedleak: Fedleak, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("data")
    told = fedleak("run", "tiny.toml", "--out", "mine")
    assert told.code == 6
    assert "mine exists already; runs are never overwritten" in told.words
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious"]


def test_no_place_to_write(fedleak: Fedleak, tmp_path: Path) -> None:
    # Not even root can make a directory under /proc.
    told = fedleak("run", "tiny.toml", "--runs", "/proc/fedleak")
    assert told.code == 6
    assert "/proc" in told.words
    (tmp_path / "file").touch()
    told = fedleak("run", "tiny.toml", "--runs", "file")
    assert told.code == 6
    assert "file" in told.words
    told = fedleak("init", "/proc/scenario.toml")
    assert told.code == 6
    assert "cannot write /proc/scenario.toml" in told.words


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(fedleak: Fedleak, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    told = fedleak("run", "tiny.toml", "--runs", "locked")
    assert told.code == 6
    assert "no permission to write in" in told.words


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not audited; not to be changed."""
    from fedleak.federation import run
    from fedleak.scenario import load_scenario

    scenario = load_scenario(
        {
            "data": {"kind": "digits"},
            "model": {"kind": "mlp"},
            "federation": {"clients": 2, "rounds": 1},
            "audit": {"attacks": [{"kind": "analytic"}]},
        }
    )
    return run(scenario, directory=tmp_path_factory.mktemp("captured") / "run")


@pytest.fixture
def damaged(captured: Path, fedleak: Fedleak, tmp_path: Path) -> Path:
    """A copy of it under the working directory, to be damaged."""
    return Path(shutil.copytree(captured, tmp_path / "run"))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["client-001.safetensors", "sent-*.safetensors"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_short, "cut short"),
        (flip_a_byte, "differs from the manifest's SHA-256: it was altered"),
        (Path.unlink, "No such file or directory"),
    ],
)
def test_a_damaged_capture(
    fedleak: Fedleak, damaged: Path, name: str, damage: Callable[[Path], None], said: str
) -> None:
    (path,) = (damaged / "captures" / "round-0001").glob(name)
    damage(path)
    told = fedleak("audit", "run")
    assert told.code == 4
    assert said in told.words
    assert f"run/captures/round-0001/{path.name}" in told.words
    assert "Traceback" not in told.err


@pytest.mark.parametrize("damage", [cut_short, Path.unlink])
def test_a_damaged_manifest(
    fedleak: Fedleak, damaged: Path, damage: Callable[[Path], None]
) -> None:
    damage(damaged / "manifest.json")
    told = fedleak("audit", "run")
    assert told.code == (4 if damage is cut_short else 6)
    assert "manifest.json" in told.words


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--model", "mine:Net", "--input-shape", "1,8,8"], 2, "--model: No module named 'mine'"),
        (["--model", "mine", "--input-shape", "1,8,8"], 2, "--model: 'mine' is not of the form"),
        (["--model", "mine:Net"], 2, "--input-shape: is needed with --model"),
        (["--input-shape", "1,8,8"], 2, "--input-shape: needs --model"),
        (["--attack", "gss"], 2, "--attack: 'gss' is not one of: analytic"),
        (["--attack", "gs", "--set", "gs.iteratons=1"], 2, "--set gs.iteratons: unknown key"),
        (["--set", "gs.iterations=1"], 2, "sets nothing that is asked for (analytic)"),
        (["--rounds", "one"], 2, "--rounds: 'one' is not a list of whole numbers"),
        (["--rounds", "7"], 2, "--rounds: no round 7 was captured; there are 1"),
        (["--clients", "7"], 2, "no capture of client-007; there are client-000, client-001"),
        (["--executor", "rey"], 2, "--executor: 'rey' is not one of: inline, ray"),
        (["--executor", "ray", "--actors", "0"], 2, "--actors: must be at least 1, not 0"),
    ],
)
def test_an_audit_that_cannot_be(
    fedleak: Fedleak, damaged: Path, arguments: list[str], code: int, said: str
) -> None:
    told = fedleak("audit", "run", *arguments)
    assert told.code == code
    assert said in told.words
    assert "problem in the scenario" not in told.words
    assert not (damaged / "audit").exists()


def test_a_model_that_is_not_the_captured_one(fedleak: Fedleak, damaged: Path) -> None:
    Path("faulty_own_model.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    told = fedleak("audit", "run", "--model", "faulty_own_model:Net", "--input-shape", "1,8,8")
    assert told.code == 4
    assert "round 1, client-000: the capture is of another model" in told.words
    assert not (damaged / "audit" / "cells").exists()


def test_no_run_directory(fedleak: Fedleak) -> None:
    for command in ("audit", "report"):
        told = fedleak(command, "nowhere")
        assert told.code == 6
        assert "nowhere" in told.words
        assert "`fedleak run SCENARIO`" in told.words
        assert not Path("nowhere").exists()


def test_a_report_before_the_audit(fedleak: Fedleak, damaged: Path) -> None:
    told = fedleak("report", "run")
    assert told.code == 6
    assert "run `fedleak audit run` first" in told.words


def test_a_damaged_scenario_in_a_run(fedleak: Fedleak, damaged: Path) -> None:
    path = damaged / "scenario.toml"
    path.write_text(path.read_text().replace('kind = "mlp"', 'kind = "mpl"'))
    told = fedleak("audit", "run")
    assert told.code == 2
    assert "model.kind: 'mpl' is not one of" in told.words


def test_arrays_that_are_no_images(fedleak: Fedleak, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x_train=np.zeros((9, 8, 8)), y_trian=np.zeros(9, int))
    told = fedleak("run", "tiny.toml", "--set", 'data={kind="npz", path="mine.npz"}')
    assert told.code == 2
    assert "data.y_train: 'mine.npz' has no array 'y_train'" in told.words
    assert "Did you mean 'y_trian'?" in told.words
    assert not Path("runs").exists()


def test_a_model_larger_than_memory(fedleak, tmp_path):
    (tmp_path / "huge.toml").write_text(
        'data = { kind = "digits" }\nmodel = { kind = "mlp", hidden = [1000000, 1000000] }\n'
    )
    result = fedleak("validate", str(tmp_path / "huge.toml"))
    assert result.code == 6
    assert "does not fit into memory" in result.words
