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

from fedleak import audit, load_scenario, report
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


def start_client(partition, port, log, certificates=None):
    """A SuperNode besides those that `run_processes` starts."""
    command = supernode_command(
        f"127.0.0.1:{port}",
        partition,
        CLIENTS,
        audit_data=True,
        port=free_port(),
        certificates=certificates,
    )
    with log.open("wb") as out:
        return subprocess.Popen(
            command,
            env=environment(log.with_suffix("")),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(client):
    with suppress(ProcessLookupError):
        os.killpg(client.pid, signal.SIGKILL)
    client.wait()


def absent_of(store):
    return {int(number): entry["absent"] for number, entry in rounds_of(store).items()}


@instead_of_containers
@pytest.mark.slow
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
        own = certificates / f"client-{CLIENTS:03d}"
        strangers.append(start_client(CLIENTS, port, tmp_path / "stranger.log", own))

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
        end(stranger)
    assert "Failed to activate SuperNode" in (tmp_path / "stranger.log").read_text()
    assert store.layout.root.stat().st_mode & 0o777 == 0o700
    assert json.loads(store.layout.ended.read_text()) == {"error": "", "reason": ""}


@instead_of_containers
@pytest.mark.slow
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
    assert absent_of(store) == {1: [], 2: ["client-001"], 3: ["client-001"]}


@pytest.mark.slow
def test_clients_that_join_late_hang_and_come_back_are_absent_meanwhile(scenario, inline, tmp_path):
    five = load_scenario(
        scenario, ["federation.rounds=5", "federation.patience=60", "federation.quorum=0.3"]
    )
    port = free_port()
    processes = {}
    late = []

    def begin(started):
        processes.update(started)
        os.killpg(processes["client-002"].pid, signal.SIGKILL)

    def watch(line):
        if "[ROUND 2/5]" in line:
            late.append(start_client(2, port, tmp_path / "late.log"))
            # It stays connected and says nothing any more, not even that it is alive.
            os.killpg(processes["client-001"].pid, signal.SIGSTOP)
        elif "[ROUND 3/5]" in line:
            os.killpg(processes["client-001"].pid, signal.SIGCONT)

    try:
        run_processes(five, tmp_path / "run", port=port, on_started=begin, on_line=watch)
    finally:
        for client in late:
            end(client)
    store = CaptureStore(tmp_path / "run")
    assert store.rounds() == [1, 2, 3, 4, 5]
    assert_same(store, inline, 1, ["client-000", "client-001"])
    absent = absent_of(store)
    assert absent[1] == ["client-002"]
    assert absent[2] == ["client-001", "client-002"]
    assert "client-002" not in absent[3]
    assert absent[5] == []
    assert store.clients(5) == ALL
    audit(store.layout.root)
    page = report(store.layout.root).read_text()
    assert "<td>client-001, client-002</td>" in page.partition('id="rounds"')[2]


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
    assert "Only client-000 opted in" in page
    assert len(list(layout.cells.glob("*.json"))) == 8
    assert {path.name.split(".")[1] for path in directory.glob("audit/originals/*")} == {
        "client-000"
    }


def test_too_few_clients_are_waited_for_and_counted(scenario, tmp_path):
    lines = []
    wanting = load_scenario(
        scenario, ["federation.patience=30", "federation.quorum=1.0", "federation.clients=2"]
    )

    def kill(processes):
        os.killpg(processes["client-001"].pid, signal.SIGKILL)

    with pytest.raises(QuorumLost, match=r"1 of 2 clients connected \(client-001 missing\)"):
        run_processes(
            wanting, tmp_path / "run", port=free_port(), on_started=kill, on_line=lines.append
        )
    assert any("Waiting: " in line and "client-001 missing" in line for line in lines)
    assert json.loads((tmp_path / "run" / "ended.json").read_text())["error"] == "QuorumLost"
