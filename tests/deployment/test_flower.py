"""Flower's command lines, and what is refused before any of them starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedleak.captures import RunLayout
from fedleak.deployment.certificates import make_certificates
from fedleak.deployment.ending import raise_unless_completed
from fedleak.deployment.flower import superlink_command, supernode_command
from fedleak.errors import ResourceError


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def options(command):
    """The options of a command line with their values."""
    found = {}
    for index, word in enumerate(command):
        if word.startswith("--"):
            value = command[index + 1] if index + 1 < len(command) else ""
            found[word] = "" if value.startswith("--") else value
    return found


def test_nothing_is_installed_and_nobody_unregistered_let_in(tmp_path, port):
    make_certificates(tmp_path / "certs", 1)
    server, client = tmp_path / "certs" / "server", tmp_path / "certs" / "client-000"
    superlink = options(superlink_command("127.0.0.1", port, tmp_path / "state", server))
    assert {"--enable-supernode-auth", "--disable-runtime-dependency-installation"} <= set(
        superlink
    )
    assert "--insecure" not in superlink
    supernode = options(
        supernode_command("x:1", 0, 1, audit_data=True, port=port, certificates=client)
    )
    assert supernode["--node-config"] == "partition-id=0 num-partitions=1 audit-data=true"
    assert supernode["--auth-supernode-private-key"] == str(client / "auth.key")
    assert "--insecure" not in supernode
    assert "--allow-runtime-dependency-installation" not in supernode


def test_a_port_that_is_taken_is_named(fedleak, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        result = fedleak("deploy", "superlink", "--port", str(number))
        assert result.code == 6
        assert f"127.0.0.1:{number}" in result.words
        assert "name another with --port" in result.words
        result = fedleak("deploy", "processes", "tiny.toml", "--port", str(number))
        assert result.code == 6
        assert f"127.0.0.1:{number}" in result.words
    assert not (tmp_path / "runs").exists()


def test_a_place_that_cannot_be_written_is_named(fedleak, tmp_path, port):
    # Even root cannot write below a file.
    (tmp_path / "volume").write_text("")
    database = tmp_path / "volume" / "state.db"
    result = fedleak("deploy", "superlink", "--port", str(port), "--database", str(database))
    assert result.code == 6
    assert f"cannot write in {tmp_path / 'volume'}" in result.words
    assert "mount it writable" in result.words


READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
"""Makes a folder a read-only volume for one command, even for root."""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
@pytest.mark.parametrize(
    "command",
    [("superlink", "--database", "{}/state.db"), ("processes", "tiny.toml", "--runs", "{}")],
)
def test_a_read_only_volume_is_named_with_the_remedy(fedleak, tmp_path, port, command):
    volume = tmp_path / "volume"
    volume.mkdir()
    within = ["unshare", "--mount", "sh", "-c", READ_ONLY, str(volume)]
    if subprocess.run([*within, "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    options = [part.format(volume) for part in command]
    program = str(Path(sys.executable).with_name("fedleak"))
    done = subprocess.run(
        [*within, program, "deploy", *options, "--port", str(port)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 6
    said = " ".join((done.stdout + done.stderr).split())
    assert str(volume) in said.replace(" ", "")
    assert "name another place" in said
    assert not list(volume.iterdir())


def test_why_a_run_failed_is_told_where_it_left_no_directory(tmp_path):
    ended = ("finished:failed", "ServerApp failed with exception: cannot make /runs/x")
    with pytest.raises(ResourceError, match="cannot make /runs/x"):
        raise_unless_completed(RunLayout(tmp_path / "run"), *ended)


def test_a_missing_certificate_is_named_before_anything_starts(fedleak, tmp_path, port):
    result = fedleak("deploy", "processes", "tiny.toml", "--port", str(port), "--certs", "certs")
    assert result.code == 6
    assert "certs/server/ca.pem is missing; `fedleak deploy certs certs` makes it" in result.words
    result = fedleak("deploy", "supernode", "0", "--port", str(port), "--certs", "certs/client-000")
    assert result.code == 6
    assert "certs/client-000/ca.pem is missing" in result.words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["supernode", "7", "--clients", "3"], "no partition 7 among 3 clients: 0 to 2"),
        (["processes", "tiny.toml", "--private", "7"], "no client 7; partition ids go from 0"),
        (["processes", "tiny.toml", "--port", "99999"], "99999 is not in the range"),
    ],
)
def test_who_cannot_be_is_refused(fedleak, arguments, said):
    told = fedleak("deploy", *arguments)
    assert told.code == 2
    assert said in told.words


def test_a_deployment_is_not_run_as_a_simulation(fedleak):
    result = fedleak("run", "tiny.toml", "--set", "federation.engine=deployment")
    assert result.code == 2
    assert "fedleak deploy processes" in result.words


def test_no_superlink_is_said_so(monkeypatch, port):
    from fedleak.deployment.starting import start_run
    from fedleak.scenario import load_scenario

    scenario = load_scenario({"data": {"kind": "digits"}, "model": {"kind": "mlp"}})
    with pytest.raises(ResourceError, match=f"no SuperLink answers at 127.0.0.1:{port}"):
        start_run(scenario, "/nowhere", f"127.0.0.1:{port}", patience=0.0)
