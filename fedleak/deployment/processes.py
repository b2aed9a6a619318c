"""A deployment without containers: SuperLink, SuperNodes and run as processes on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from fedleak.captures import RunLayout
from fedleak.deployment.ending import raise_unless_completed
from fedleak.deployment.flower import environment, superlink_command, supernode_command
from fedleak.deployment.starting import register_clients, start_run
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

        address = f"{_HOST}:{port}"
        with ExitStack() as running:
            running.callback(_keep, logs, directory)
            processes = running.enter_context(_Processes(Path(place), logs))
            processes.start(
                "superlink",
                superlink_command(_HOST, port, Path(place) / "superlink.db", party("server")),
            )
            if (operator := party("operator")) is not None:
                register_clients(address, operator)
            for partition, own_port in enumerate(_free_ports(clients)):
                name = partition_name(partition)
                command = supernode_command(
                    address,
                    partition,
                    clients,
                    audit_data=opted_in(partition),
                    port=own_port,
                    certificates=party(name),
                )
                processes.start(name, command)
            on_started(processes.by_name)
            ended = start_run(scenario, directory, address, certificates=operator, on_line=on_line)
        raise_unless_completed(RunLayout(directory), *ended)


class _Processes:
    """Processes with a log and a home of their own each, all ended on exit."""

    def __init__(self, place: Path, logs: Path) -> None:
        self.by_name: dict[str, subprocess.Popen[bytes]] = {}
        self._place = place
        self._logs = logs

    def start(self, name: str, command: list[str]) -> None:
        with (self._logs / f"{name}.log").open("wb") as log:
            # Ctrl-C reaches this process alone, which then ends them in order.
            self.by_name[name] = subprocess.Popen(
                command,
                env=environment(self._place / name),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        processes = list(self.by_name.values())
        for process in processes:
            process.terminate()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            # What a process that was killed has left behind is in its group.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _keep(logs: Path, directory: Path) -> None:
    if directory.is_dir():
        shutil.copytree(logs, directory / "logs", dirs_exist_ok=True)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((_HOST, 0))
        return [each.getsockname()[1] for each in sockets]
