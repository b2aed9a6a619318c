"""Starting a run on a SuperLink and following it to its end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from fedleak.deployment.bundle import write_bundle
from fedleak.deployment.certificates import CA, check_certificates
from fedleak.deployment.flower import environment, flower
from fedleak.errors import ResourceError
from fedleak.scenario import Scenario

_CONNECTION = "deployment"
_POLL_SECONDS = 0.5
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def register_clients(superlink: str, certificates: Path, *, patience: float = 60.0) -> None:
    """Register clients' public keys with a SuperLink; whoever has no such key stays out.

    Clients can connect from then on. One that comes earlier is turned away and ends.

    Args:
        superlink: ``host:port`` of the SuperLink.
        certificates: The operator's folder of `make_certificates`, with the keys.
        patience: Seconds to wait for the SuperLink.

    Raises:
        ResourceError: The SuperLink does not answer or refuses a key, or a certificate
            is missing or out of date.
    """
    with _operator(superlink, certificates, patience) as home:
        for key in sorted(certificates.glob("*.pub")):
            told = _flwr(home, "supernode", "register", str(key))
            if not told["success"] and "in use" not in told["error-message"]:
                raise ResourceError(f"{key} cannot be registered: {told['error-message']}")


def start_run(
    scenario: Scenario,
    directory: Path,
    superlink: str,
    *,
    certificates: Path | None = None,
    patience: float = 60.0,
    on_line: Callable[[str], None] = print,
) -> tuple[str, str]:
    """Start the run and pass its log on until it ends.

    Args:
        scenario: What to run.
        directory: The run directory that the server makes; absolute, on its side.
        superlink: ``host:port`` of the SuperLink.
        certificates: The operator's folder of `make_certificates`; None for no TLS.
        patience: Seconds to wait for the SuperLink.
        on_line: Called with each line of the ServerApp's log.

    Returns:
        How it ended, as Flower says (``finished:completed``, ``finished:failed``, ...), and
        why, where it says so.

    Raises:
        ResourceError: The SuperLink does not answer or refuses the run; a certificate
            is missing or out of date.
    """
    with _operator(superlink, certificates, patience) as home:
        bundle = home / "app"
        bundle.mkdir()
        write_bundle(bundle, scenario, directory)
        told = _flwr(home, "run", str(bundle))
        if not told["success"]:
            raise ResourceError(f"{superlink} does not take the run: {told['error-message']}")
        run = str(told["run-id"])
        with subprocess.Popen(
            [flower("flwr"), "log", run, "--stream"],
            env=environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as log:
            assert log.stdout is not None
            for line in log.stdout:
                # Flower unpacks the bundle and calls that installing; nothing is installed.
                if "Successfully installed" not in line:
                    on_line(_COLOURS.sub("", line.rstrip()))
        while True:
            (listed,) = _listed(superlink, home, patience, run)["runs"]
            if str(listed["status"]).startswith("finished"):
                return str(listed["status"]), str(listed["status-details"])
            time.sleep(_POLL_SECONDS)


@contextmanager
def _operator(superlink: str, certificates: Path | None, patience: float) -> Iterator[Path]:
    """A home for Flower's commands that knows the SuperLink, once this answers."""
    with tempfile.TemporaryDirectory(prefix="fedleak-") as place:
        home = Path(place)
        (home / "config.toml").write_text(_connection(superlink, certificates))
        _listed(superlink, home, patience)
        yield home


def _connection(superlink: str, certificates: Path | None) -> str:
    if certificates is None:
        security: dict[str, Any] = {"insecure": True}
    else:
        check_certificates(certificates, (CA,))
        security = {"root-certificates": str((certificates / CA).resolve())}
    connections = {"default": _CONNECTION, _CONNECTION: {"address": superlink, **security}}
    return tomli_w.dumps({"superlink": connections})


def _listed(superlink: str, home: Path, patience: float, run: str | None = None) -> dict[str, Any]:
    """The runs of a SuperLink, or one of them, once it answers."""
    deadline = time.monotonic() + patience
    waiting = False
    while True:
        told = _flwr(home, "list", *(() if run is None else ("--run-id", run)))
        if told["success"]:
            return told
        if not waiting:
            waiting = True
            print(f"Waiting for a SuperLink at {superlink} ({patience:.0f} s).", file=sys.stderr)
        if time.monotonic() > deadline:
            reason = told.get("error-message", "no reason")
            if run is None:
                raise ResourceError(f"no SuperLink answers at {superlink}: {reason}")
            raise ResourceError(
                f"the SuperLink at {superlink} no longer answers ({reason}); rounds that it "
                "committed are kept"
            )
        time.sleep(_POLL_SECONDS)


def _flwr(home: Path, *arguments: str) -> dict[str, Any]:
    """Run one of Flower's commands; what it says, as JSON."""
    done = subprocess.run(
        [flower("flwr"), *arguments, "--format", "json"],
        env=environment(home),
        capture_output=True,
        text=True,
    )
    start = done.stdout.find("{")
    try:
        said: dict[str, Any] = json.loads(done.stdout[start:])
    except ValueError:
        said = {"success": False, "error-message": done.stderr or "no reason given"}
    if not said["success"]:
        # Before the reason it repeats what it was about to do.
        said["error-message"] = str(said["error-message"]).strip().splitlines()[-1]
    return said
