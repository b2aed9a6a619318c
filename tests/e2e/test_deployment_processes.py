"""Real federations of processes on loopback, where no container engine is needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fedleak import load_scenario
from fedleak.captures import CaptureStore, RunLayout
from fedleak.deployment.certificates import make_certificates
from fedleak.deployment.flower import environment, supernode_command
from fedleak.deployment.processes import run_processes
from fedleak.errors import QuorumLost

from .federations import (
    CLIENTS,
    SCENARIO,
    assert_same,
    free_port,
    images_ready,
    rounds_of,
    simulated,
)

pytestmark = pytest.mark.timeout(600)
instead_of_containers = pytest.mark.skipif(
    images_ready(), reason="test_deployment_containers.py runs the same in containers"
)
ALL = [f"client-{number:03d}" for number in range(CLIENTS)]


@pytest.fixture(scope="module")
def scenario(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenario") / "deployed.toml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture(scope="module")
def inline(scenario, tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("inline"), Path("run"), scenario)


@instead_of_containers
def test_with_tls_the_captures_are_the_simulations_and_strangers_stay_out(
    scenario, inline, tmp_path
):
    certificates = tmp_path / "certs"
    # One key more than there are clients, which nobody registers.
    make_certificates(certificates, CLIENTS + 1)
    (certificates / "operator" / f"client-{CLIENTS:03d}.pub").unlink()
    port = free_port()
    strangers = []

    def intrude(processes):
        command = supernode_command(
            f"127.0.0.1:{port}",
            CLIENTS,
            CLIENTS,
            audit_data=True,
            port=free_port(),
            certificates=certificates / f"client-{CLIENTS:03d}",
        )
        with (tmp_path / "stranger.log").open("wb") as log:
            stranger = subprocess.Popen(
                command,
                env=environment(tmp_path / "stranger"),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        strangers.append(stranger)

    run_processes(
        load_scenario(scenario),
        tmp_path / "run",
        port=port,
        certificates=certificates,
        on_started=intrude,
        on_line=print,
    )
    store = CaptureStore(tmp_path / "run")
    assert store.rounds() == [1, 2, 3]
    for round in store.rounds():
        assert_same(store, inline, round, ALL)
    (stranger,) = strangers
    try:
        assert stranger.wait(60) != 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(stranger.pid, signal.SIGKILL)
    assert "Failed to activate SuperNode" in (tmp_path / "stranger.log").read_text()
    assert store.layout.root.stat().st_mode & 0o777 == 0o700
    assert json.loads(store.layout.ended.read_text()) == {"error": "", "reason": ""}


@instead_of_containers
def test_a_client_that_dies_is_absent_and_the_others_go_on(scenario, inline, tmp_path):
    processes = {}
    died = threading.Event()

    def watch(line):
        if "[ROUND 2/" in line and not died.is_set():
            died.set()
            os.killpg(processes["client-001"].pid, signal.SIGKILL)

    run_processes(
        load_scenario(scenario),
        tmp_path / "run",
        port=free_port(),
        on_started=processes.update,
        on_line=watch,
    )
    assert died.is_set()
    store = CaptureStore(tmp_path / "run")
    assert store.rounds() == [1, 2, 3]
    assert_same(store, inline, 1, ALL)
    # What was sent in round 2 comes from all three.
    assert_same(store, inline, 2, ["client-000", "client-002"])
    assert store.clients(3) == ["client-000", "client-002"]
    absent = {number: entry["absent"] for number, entry in rounds_of(store).items()}
    assert absent == {"1": [], "2": ["client-001"], "3": ["client-001"]}


def test_the_command_audits_while_it_runs_and_leaves_a_page(scenario, tmp_path):
    directory = tmp_path / "run"
    command = [str(Path(sys.executable).with_name("fedleak")), "deploy", "processes"]
    command += [str(scenario), "--out", str(directory), "--port", str(free_port())]
    command += ["--clients", "2", "--private", "1", "--set", "federation.rounds=4"]
    deployment = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    layout = RunLayout(directory)
    deadline = time.monotonic() + 250
    while not (directory / "report" / "index.html").exists():
        assert deployment.poll() is None, deployment.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # The page is there after the first round, not after the last.
    assert not layout.ended.exists()
    said, _ = deployment.communicate(timeout=250)
    assert deployment.returncode == 0, said
    assert "Page:" in said
    page = (directory / "report" / "index.html").read_text()
    assert "only client-000 opted in" in page
    assert len(list(layout.cells.glob("*.json"))) == 8
    assert {path.name.split(".")[1] for path in directory.glob("audit/originals/*")} == {
        "client-000"
    }


def test_too_few_clients_are_waited_for_and_counted(scenario, tmp_path):
    lines = []
    wanting = load_scenario(
        scenario, ["federation.patience=12", "federation.quorum=1.0", "federation.clients=2"]
    )

    def kill(processes):
        os.killpg(processes["client-001"].pid, signal.SIGKILL)

    with pytest.raises(QuorumLost, match=r"1 of 2 clients connected \(client-001 missing\)"):
        run_processes(
            wanting, tmp_path / "run", port=free_port(), on_started=kill, on_line=lines.append
        )
    assert any("Waiting: " in line and "client-001 missing" in line for line in lines)
    assert json.loads((tmp_path / "run" / "ended.json").read_text())["error"] == "QuorumLost"
