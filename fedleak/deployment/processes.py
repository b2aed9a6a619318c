"""A deployment without containers: SuperLink, SuperNodes and run as processes on loopback."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedleak.captures import RunLayout
from fedleak.deployment.ending import raise_unless_completed
from fedleak.deployment.flower import environment, superlink_command, supernode_command
from fedleak.deployment.starting import start_run
from fedleak.records import partition_name
from fedleak.scenario import Scenario

_HOST = "127.0.0.1"
_STOP_SECONDS = 8.0


def run_processes(
    scenario: Scenario,
    directory: Path,
    *,
    port: int,
    certificates: Path | None = None,
    opted_in: Callable[[int], bool] = lambda partition: True,
    on_line: Callable[[str], None] = print,
    on_started: Callable[[dict[str, subprocess.Popen[bytes]]], None] = lambda processes: None,
) -> None:
    """Run a federation in processes of this machine, from start to end.

    Args:
        scenario: What to run.
        directory: The run directory to make. Logs of all processes end up in it.
        port: Where the SuperLink listens, on loopback.
        certificates: The folder of `make_certificates`; None for no TLS.
        opted_in: Whether the client of a partition opts in to being scored.
        on_line: Called with each line of the ServerApp's log.
        on_started: Called with the SuperLink's and SuperNodes' processes, by name.

    Raises:
        ResourceError: The port is taken, a certificate is missing or out of date, or the
            run failed; says why.
        QuorumLost: Too few clients were left; committed rounds are kept.
    """
    directory = directory.absolute()
    clients = scenario.federation.clients
    # Logs and the SuperLink's state hold updates while they are under way.
    with tempfile.TemporaryDirectory(prefix="fedleak-") as place:
        logs = Path(place) / "logs"
        logs.mkdir()

        def party(name: str) -> Path | None:
            return None if certificates is None else certificates / name

        commands = {
            "superlink": superlink_command(
                _HOST, port, Path(place) / "superlink.db", party("server")
            )
        }
        for partition, own_port in enumerate(_free_ports(clients)):
            name = partition_name(partition)
            commands[name] = supernode_command(
                f"{_HOST}:{port}",
                partition,
                clients,
                audit_data=opted_in(partition),
                port=own_port,
                certificates=party(name),
            )
        try:
            with _started(commands, Path(place), logs) as processes:
                on_started(processes)
                status = start_run(
                    scenario,
                    directory,
                    f"{_HOST}:{port}",
                    certificates=party("operator"),
                    on_line=on_line,
                )
        finally:
            if directory.is_dir():
                shutil.copytree(logs, directory / "logs", dirs_exist_ok=True)
        raise_unless_completed(RunLayout(directory), status)


@contextmanager
def _started(
    commands: dict[str, list[str]], place: Path, logs: Path
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as files:
        try:
            for name, command in commands.items():
                log = files.enter_context((logs / f"{name}.log").open("wb"))
                # Ctrl-C reaches this process alone, which then ends them in order.
                processes[name] = subprocess.Popen(
                    command,
                    env=environment(place / name),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            yield processes
        finally:
            _stop(list(processes.values()))


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((_HOST, 0))
        return [each.getsockname()[1] for each in sockets]
