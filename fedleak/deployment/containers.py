"""A deployment in containers: the Compose project of a scenario, up, followed and down."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedleak.captures import write_atomic
from fedleak.deployment.certificates import check_parties
from fedleak.deployment.flower import PORT, check_port
from fedleak.errors import ResourceError
from fedleak.records import partition_name
from fedleak.scenario import Scenario, to_toml

_PATTERN = partition_name(0)
_PROJECT = "fedleak"


class Project:
    """The Compose project of one deployment.

    Args:
        scenario: What to run.
        run: Name of the run directory, on the volume ``runs``.
        folder: Where the project's own files are written.
        compose: The folder with FedLeak's Compose files.
        port: Where the SuperLink is published on loopback.
        certificates: The folder of `make_certificates`; None for no TLS.
        gpus: Whether the auditor gets the machine's GPUs.
        opted_in: Whether the client of a partition opts in to being scored.

    Raises:
        ResourceError: There is no container engine, there are no such files, the port is
            taken, or a certificate is missing or out of date.
    """

    def __init__(
        self,
        scenario: Scenario,
        run: str,
        folder: Path,
        *,
        compose: Path = Path("docker"),
        port: int = PORT,
        certificates: Path | None = None,
        gpus: bool = False,
        opted_in: Callable[[int], bool] = lambda partition: True,
    ) -> None:
        base = compose / "compose.yml"
        if not base.is_file():
            raise ResourceError(f"no {base}: start this in a checkout of FedLeak or name --compose")
        check_port("127.0.0.1", port)
        names = [partition_name(partition) for partition in range(scenario.federation.clients)]
        if certificates is not None:
            check_parties(certificates, names)
        self.services = ["superlink", *names, "run", "auditor"]
        settings = folder / "scenario.toml"
        write_atomic(settings, to_toml(scenario).encode())
        files = [base]
        files += [compose / "compose.tls.yml"] if certificates else []
        files += [compose / "compose.gpu.yml"] if gpus else []
        overrides = clients_of(yaml.safe_load(base.read_text()), names, certificates, opted_in)
        clients = folder / "clients.yml"
        write_atomic(clients, yaml.safe_dump(overrides, sort_keys=False).encode())
        self._command = [*engine(), "--project-name", _PROJECT]
        self._command += [part for file in (*files, clients) for part in ("--file", str(file))]
        self._environment = {
            **os.environ,
            "FEDLEAK_RUN": run,
            "FEDLEAK_SCENARIO": str(settings.absolute()),
            "FEDLEAK_CERTS": str((certificates or folder).absolute()),
            "SUPERLINK_PORT": str(port),
        }
        self._run = run

    def up(self, report: Path) -> None:
        """Build missing images, start everything, pass on what it says, take it down.

        Args:
            report: Where the page is copied to; the volume keeps everything.

        Raises:
            ResourceError: Another deployment is running, or a container did not come up.
            SystemExit: Exit code of the run or else of the auditor, where it is not 0.
        """
        self._refuse_another()
        try:
            self._start()
            self.compose("logs", "--follow", "--no-color", "--no-log-prefix", "run")
            code = self.exit_code("run")
            if code == 0:
                code = self.exit_code("auditor")
                self.compose("logs", "--no-color", "--no-log-prefix", "auditor")
                self._fetch(report)
        finally:
            self.compose("down", "--timeout", "10")
        if code:
            sys.exit(code)

    def _refuse_another(self) -> None:
        # It has the same volumes and the same names, and going down would end both.
        label = f"label=com.docker.compose.project={_PROJECT}"
        listed = subprocess.run(
            ["docker", "ps", "--quiet", "--filter", label], capture_output=True, text=True
        )
        if listed.stdout.strip():
            raise ResourceError(
                f"a deployment is running here already, in the Compose project {_PROJECT!r}: wait "
                f"for its end, or end it with `docker compose --project-name {_PROJECT} down`"
            )

    def _start(self) -> None:
        try:
            self.compose("up", "--detach", *self.services)
        except ResourceError:
            # Why a container did not come up is the last that it said.
            self.compose("logs", "--tail", "5")
            raise

    def compose(self, *arguments: str, capture: bool = False) -> str:
        """Run one of Compose's commands on this project.

        Raises:
            ResourceError: It failed; what it said went to standard error.
        """
        done = subprocess.run(
            [*self._command, *arguments],
            env=self._environment,
            stdout=subprocess.PIPE if capture else None,
            text=True,
        )
        if done.returncode:
            raise ResourceError(f"`docker compose {arguments[0]}` failed, see above")
        return done.stdout or ""

    def container(self, service: str) -> str:
        """Id of a service's container."""
        return self.compose("ps", "--all", "--quiet", service, capture=True).strip()

    def _fetch(self, report: Path) -> None:
        # It shows what was reconstructed: the owner's alone, as a run directory is.
        report.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        source = f"{self.container('auditor')}:/runs/{self._run}/report"
        copied = subprocess.run(["docker", "cp", source, str(report)], capture_output=True)
        if copied.returncode == 0:
            print(f"Page: {report / 'index.html'}")

    def exit_code(self, service: str) -> int:
        """Wait until a service's container ends; its exit code."""
        done = subprocess.run(
            ["docker", "wait", self.container(service)], check=True, capture_output=True, text=True
        )
        return int(done.stdout)


def clients_of(
    base: Mapping[str, Any],
    names: Sequence[str],
    certificates: Path | None,
    opted_in: Callable[[int], bool],
) -> dict[str, Any]:
    """The clients of a deployment as a Compose file, made after the first one of the base.

    Args:
        base: The base Compose file.
        names: Names of the clients, by partition.
        certificates: The folder of `make_certificates`; None for no TLS.
        opted_in: Whether the client of a partition opts in to being scored.
    """
    services: dict[str, Any] = {}
    for partition, name in enumerate(names):
        service = copy.deepcopy(base["services"][_PATTERN])
        # Paths in a file are relative to the first file; the images are built from that one.
        del service["build"]
        command = [str(partition), "--clients", str(len(names)), "--superlink", "superlink:8000"]
        service["command"] = command
        service["environment"] = {"FEDLEAK_AUDIT_DATA": str(int(opted_in(partition)))}
        if certificates is not None:
            service["environment"]["FEDLEAK_CERTS"] = f"/certs/{name}"
            service["volumes"] = [f"{(certificates / name).absolute()}:/certs/{name}:ro"]
            service["depends_on"]["register"] = {"condition": "service_completed_successfully"}
        services[name] = service
    return {"services": services}


def engine() -> list[str]:
    """Docker's Compose: the plugin, or the program that came before it.

    Raises:
        ResourceError: There is neither.
    """
    for command in (["docker", "compose"], ["docker-compose"]):
        try:
            if subprocess.run([*command, "version"], capture_output=True).returncode == 0:
                return command
        except FileNotFoundError:
            continue
    raise ResourceError("there is no Docker Compose here; `fedleak deploy processes` needs none")
