"""``flwr run .`` from the repository's root runs the same apps as ``fedleak run``."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedleak import load_scenario, run
from fedleak.captures import CaptureStore

ROOT = Path(__file__).parents[2]
SUPERLINK_PORT = 39091  # of the SuperLink that `flwr run` starts on this machine


@pytest.fixture
def flower_home(tmp_path):
    """A home of its own for Flower; the SuperLink it starts is ended by its id."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", SUPERLINK_PORT)) == 0:
            pytest.skip("somebody's local SuperLink is running on this machine")
    home = tmp_path / "home"
    home.mkdir()
    yield home
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if b"flower-superlink" in command and str(home).encode() in command:
                os.kill(int(process.name), signal.SIGTERM)
        except OSError:
            continue  # it ended by itself


def test_flwr_run_gives_the_captures_of_the_inline_engine(flower_home, tmp_path):
    flwr = shutil.which("flwr", path=str(Path(sys.executable).parent))
    assert flwr is not None
    result = subprocess.run(
        [flwr, "run", str(ROOT), "--stream"],
        cwd=tmp_path,
        env={
            **os.environ,
            "HOME": str(flower_home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    places = list((tmp_path / "runs").glob("flower-simulation-*"))
    assert len(places) == 1, re.sub(r"\x1b\[\d+m", "", result.stdout + result.stderr)
    theirs = CaptureStore(places[0])
    scenario = load_scenario(ROOT / "scenarios" / "flower-simulation.toml")
    ours = CaptureStore(run(scenario, directory=tmp_path / "inline"))
    assert theirs.rounds() == ours.rounds() == [1, 2]
    for round in ours.rounds():
        assert theirs.clients(round) == ours.clients(round) == ["client-000", "client-001"]
        for client in ours.clients(round):
            mine, other = ours.load(round, client), theirs.load(round, client)
            assert mine.facts == other.facts
            for name, array in mine.received.items():
                assert array.tobytes() == other.received[name].tobytes()
