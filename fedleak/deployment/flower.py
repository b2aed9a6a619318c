"""Flower's own commands with what a deployment needs of their options."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedleak.deployment.certificates import (
    CA,
    CLIENT_KEY,
    SERVER,
    SERVER_KEY,
    check_certificates,
)
from fedleak.errors import ResourceError

PORT = 8000
"""Where a SuperLink listens by default."""

_FIRMER = ((3.0, signal.SIGINT), (6.0, signal.SIGKILL))
"""What a SuperLink that was told to end gets after so many seconds. Docker gives it ten."""


def superlink_command(host: str, port: int, database: Path, certificates: Path | None) -> list[str]:
    """The command line of a SuperLink.

    Args:
        host: Address to listen on.
        port: Its one port: clients, the ServerApp and the operator all come in there.
        database: File for its state, which holds the updates while they are under way.
        certificates: The server's folder of `make_certificates`; with it the SuperLink
            speaks TLS only and lets registered clients in only. None for neither.

    Raises:
        ResourceError: The port is taken, a certificate is missing or out of date, or
            the database's folder cannot be written.
    """
    check_port(host, port)
    check_writable(database.parent)
    options = ["--host", host, "--port", str(port), "--database", str(database)]
    # Everything is installed; a deployment installs nothing while it runs.
    options += ["--disable-runtime-dependency-installation"]
    if certificates is None:
        options += ["--insecure"]
    else:
        check_certificates(certificates, (CA, SERVER, SERVER_KEY))
        options += ["--ssl-ca-certfile", str(certificates / CA)]
        options += ["--ssl-certfile", str(certificates / SERVER)]
        options += ["--ssl-keyfile", str(certificates / SERVER_KEY)]
        options += ["--enable-supernode-auth"]
    return [flower("flower-superlink"), *options]


def supernode_command(
    superlink: str,
    partition: int,
    clients: int,
    *,
    audit_data: bool,
    port: int,
    certificates: Path | None,
) -> list[str]:
    """The command line of a SuperNode.

    Args:
        superlink: ``host:port`` of the SuperLink.
        partition: The partition that this client holds.
        clients: Clients in the federation.
        audit_data: Whether this client opts in to being scored against the audit data.
        port: For its own ClientApp, on loopback.
        certificates: This client's folder of `make_certificates`; None for no TLS.

    Raises:
        ResourceError: The port is taken, or a certificate is missing or out of date.
    """
    check_port("127.0.0.1", port)
    config = f"partition-id={partition} num-partitions={clients}"
    config += f" audit-data={str(audit_data).lower()}"
    options = ["--superlink", superlink, "--host", "127.0.0.1", "--port", str(port)]
    options += ["--node-config", config]
    if certificates is None:
        options += ["--insecure"]
    else:
        check_certificates(certificates, (CA, CLIENT_KEY))
        options += ["--root-certificates", str(certificates / CA)]
        options += ["--auth-supernode-private-key", str(certificates / CLIENT_KEY)]
    return [flower("flower-supernode"), *options]


def flower(command: str) -> str:
    """One of Flower's commands, of the installation that this process runs in."""
    return str(Path(sys.executable).with_name(command))


def environment(home: Path) -> dict[str, str]:
    """Environment of a Flower process that keeps its files in a folder of its own.

    Its commands must find each other, so this installation comes first on the path.
    """
    own: Mapping[str, str] = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    return {**os.environ, **own}


def become(command: Sequence[str]) -> None:
    """Turn this process into another one, which so gets its signals first hand."""
    os.execve(command[0], list(command), environment(flower_home()))


def attend(command: Sequence[str]) -> int:
    """Run a SuperLink as a child process and see to it that it ends when it is told to.

    Told once, it waits for open connections, and somebody who follows a run's log keeps
    one open for as long as the run lasts. Captures are committed whole or not at all, so
    nothing is lost with a firmer word.

    Returns:
        Its exit code; 0 where it ended because it was told to.
    """
    process = subprocess.Popen(command, env=environment(flower_home()))
    told: list[int] = []

    def end(number: int, frame: object) -> None:
        told.append(number)
        process.terminate()
        for seconds, firmer in _FIRMER:
            timer = threading.Timer(seconds, process.send_signal, [firmer])
            timer.daemon = True
            timer.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    code = process.wait()
    return 0 if told else code


def flower_home() -> Path:
    """Where Flower keeps what it unpacks."""
    return Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr"))


def check_port(host: str, port: int) -> None:
    """Refuse a port that somebody listens on.

    Raises:
        ResourceError: Names the port and the way out.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResourceError(
                f"cannot listen on {host}:{port} ({error.strerror}): end what runs there, or "
                "name another with --port"
            ) from error


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written.

    Raises:
        ResourceError: Names it; a read-only volume is the usual reason.
    """
    probe = folder / f".fedleak-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ResourceError(
            f"cannot write in {folder} ({error.strerror}): mount it writable for user "
            f"{os.getuid()}, or name another place"
        ) from error
