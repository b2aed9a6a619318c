"""Real federations in containers, with the images that ``.ci/images`` builds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedleak import __version__, load_scenario
from fedleak.captures import CaptureStore
from fedleak.deployment.certificates import make_certificates
from fedleak.deployment.containers import Project

from .federations import (
    CLIENTS,
    IMAGES,
    SCENARIO,
    assert_same,
    free_port,
    images_ready,
    rounds_of,
    simulated,
)

ROOT = Path(__file__).parents[2]
ALL = [f"client-{number:03d}" for number in range(CLIENTS)]
CONTAINER_USER = 10001


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout.strip()


pytestmark = [
    pytest.mark.skipif(
        not images_ready(),
        reason="no container engine with FedLeak's images; test_deployment_processes.py runs "
        "the same on loopback",
    ),
    pytest.mark.skipif(os.getuid() != 0, reason="keys cannot be given to the containers' user"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def scenario(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenario") / "deployed.toml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture(scope="module")
def inline(scenario, tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("inline"), Path("run"), scenario)


@pytest.fixture
def project(scenario, tmp_path):
    """Starts deployments whose containers and volumes are gone afterwards."""
    started = []

    def make(run, **options):
        made = Project(
            load_scenario(scenario),
            run,
            tmp_path / "project",
            compose=ROOT / "docker",
            port=free_port(),
            **options,
        )
        started.append(made)
        return made

    yield make
    for made in started:
        made.compose("down", "--volumes", "--timeout", "10")


def captures(project, run, target):
    """What is on the volume of a run, copied to this machine."""
    shutil.rmtree(target, ignore_errors=True)
    docker("cp", f"{project.container('superlink')}:/runs/{run}", str(target), check=False)
    return CaptureStore(target)


def wait_for_round(project, run, round, target, seconds=400):
    deadline = time.monotonic() + seconds
    while True:
        store = captures(project, run, target)
        if round in store.rounds():
            return store
        assert time.monotonic() < deadline, project.compose("logs", "run", capture=True)
        time.sleep(1)


@contextmanager
def temporary(container: str):
    try:
        yield container
    finally:
        docker("rm", "--force", container)


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_small_and_hold_no_tools(name):
    image = f"fedleak-{name}:{__version__}"
    assert int(docker("image", "inspect", "--format", "{{.Size}}", image)) < 2.5e9
    assert docker("image", "inspect", "--format", "{{.Config.User}}", image) == "10001:10001"
    tools = "command -v gcc cc make; ls /opt/fedleak/bin/pip /root/.cache 2>/dev/null; true"
    assert docker("run", "--rm", "--entrypoint", "sh", image, "-c", tools) == ""


def test_the_command_gives_the_simulations_captures_and_a_page(scenario, inline, tmp_path):
    command = [str(Path(sys.executable).with_name("fedleak")), "deploy", "up", str(scenario)]
    command += ["--port", str(free_port()), "--runs", str(tmp_path), "--private", "2"]
    deployed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    (page,) = tmp_path.glob("deployed-*/report/index.html")
    assert "Only client-000, client-001 opted in" in page.read_text()
    run = page.parents[1].name
    image = f"fedleak-auditor:{__version__}"
    holder = docker("create", "--volume", "fedleak_runs:/runs", image)
    with temporary(holder):
        docker("cp", f"{holder}:/runs/{run}", str(tmp_path / "copy"))
    docker("volume", "rm", "fedleak_runs", "fedleak_state")
    theirs = CaptureStore(tmp_path / "copy")
    assert theirs.rounds() == [1, 2, 3]
    for round in theirs.rounds():
        assert_same(theirs, inline, round, ALL)


def test_with_tls_strangers_stay_out_and_a_death_does_not_end_the_run(project, inline, tmp_path):
    certificates = tmp_path / "certs"
    make_certificates(certificates, CLIENTS + 1, owner=CONTAINER_USER)
    stranger = f"client-{CLIENTS:03d}"
    (certificates / "operator" / f"{stranger}.pub").unlink()
    made = project("secured", certificates=certificates)
    made.compose("up", "--detach", *made.services)
    image = f"fedleak-client:{__version__}"
    network = ["--network", "fedleak_federation"]
    mounted = ["--volume", f"{certificates / stranger}:/certs:ro", "--env", "FEDLEAK_CERTS=/certs"]
    asked = [str(CLIENTS), "--superlink", "superlink:8000"]
    with temporary(docker("run", "--detach", *network, *mounted, image, *asked)) as intruder:
        assert docker("wait", intruder) != "0"
        said = subprocess.run(["docker", "logs", intruder], capture_output=True, text=True)
        assert "Failed to activate SuperNode" in said.stdout + said.stderr
    wait_for_round(made, "secured", 1, tmp_path / "copy")
    docker("kill", made.container("client-001"))
    assert made.exit_code("run") == 0
    assert made.exit_code("auditor") == 0
    store = captures(made, "secured", tmp_path / "copy")
    assert store.rounds() == [1, 2, 3]
    assert_same(store, inline, 1, ALL)
    absent = {number: entry["absent"] for number, entry in rounds_of(store).items()}
    assert absent == {"1": [], "2": ["client-001"], "3": ["client-001"]}
    assert_same(store, inline, 2, ["client-000", "client-002"])


def test_a_server_that_is_stopped_ends_in_time_and_leaves_whole_rounds(project, inline, tmp_path):
    made = project("stopped")
    made.compose("up", "--detach", *made.services)
    wait_for_round(made, "stopped", 1, tmp_path / "copy")
    server = made.container("superlink")
    began = time.monotonic()
    docker("stop", "--time", "10", server)
    assert time.monotonic() - began < 10
    assert docker("inspect", "--format", "{{.State.ExitCode}}", server) == "0"
    store = captures(made, "stopped", tmp_path / "copy")
    assert store.rounds()[0] == 1
    for round in store.rounds():
        assert_same(store, inline, round, ALL)
