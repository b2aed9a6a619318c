"""What the tests of a deployment have in common, in containers or not."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import numpy as np

from fedleak import __version__, run
from fedleak.captures import CaptureStore
from fedleak.scenario import Scenario, load_scenario

CLIENTS = 3
SCENARIO = """
name = "deployed"
seed = 3
data = { kind = "digits" }
model = { kind = "mlp", hidden = [16] }
federation = { engine = "deployment", clients = 3, rounds = 3, audit_data = true, timeout = 200 }
audit = { attacks = [{ kind = "analytic" }] }
"""
IMAGES = ("server", "client", "auditor")
TOLERANCE = 1e-6


def simulated(path: Path, directory: Path, scenario: Path) -> CaptureStore:
    """The same scenario on the inline engine."""
    checked = load_scenario(scenario, ['federation.engine="inline"'])
    assert isinstance(checked, Scenario)
    return CaptureStore(run(checked, directory=path / directory))


def assert_same(theirs: CaptureStore, ours: CaptureStore, round: int, clients: list[str]) -> None:
    """Captures of a round are the same up to the tolerance."""
    assert theirs.clients(round) == clients
    for client in clients:
        one, other = theirs.load(round, client), ours.load(round, client)
        assert one.facts == other.facts
        for mine, other_arrays in ((one.sent, other.sent), (one.received, other.received)):
            assert set(mine) == set(other_arrays)
            for name, array in mine.items():
                difference = np.abs(array - other_arrays[name]).max()
                assert difference <= TOLERANCE, (round, client, name, difference)


def rounds_of(store: CaptureStore) -> dict[str, dict]:
    """The rounds in a run's manifest."""
    return json.loads(store.layout.manifest.read_text())["rounds"]


def images_ready() -> bool:
    """Whether there is a container engine with the images of this version."""
    names = [f"fedleak-{name}:{__version__}" for name in IMAGES]
    try:
        looked = subprocess.run(["docker", "image", "inspect", *names], capture_output=True)
    except FileNotFoundError:
        return False
    return looked.returncode == 0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
