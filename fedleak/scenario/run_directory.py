"""Starting a run directory: what was asked for and on which machine."""

from __future__ import annotations

import functools
import json
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from fedleak.captures import RunLayout, write_atomic
from fedleak.errors import ResourceError
from fedleak.scenario.loading import to_toml
from fedleak.scenario.schema import Scenario

_VERSIONS = ("fedleak", "flwr", "numpy", "opacus", "ray", "torch", "torchvision")


def new_run(scenario: Scenario, runs: Path, directory: Path | None = None) -> RunLayout:
    """Create a run directory with the resolved scenario and the environment.

    Args:
        scenario: What is to be run.
        runs: Where ``<name>-<utc time>`` is made.
        directory: Used instead, if given; must not exist.

    Raises:
        ResourceError: The directory exists already or cannot be made.
    """
    layout = RunLayout(new_directory(scenario.name, runs, directory))
    write_atomic(layout.scenario, to_toml(scenario).encode())
    write_environment(layout.environment)
    return layout


def new_directory(name: str, runs: Path, directory: Path | None = None) -> Path:
    """Make an empty directory ``<name>-<utc time>`` under ``runs``, or the one given.

    Raises:
        ResourceError: It exists already or cannot be made.
    """
    if directory is None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        directory = runs / f"{name}-{stamp}"
        count = 1
        while directory.exists():
            count += 1
            directory = runs / f"{name}-{stamp}-{count}"
    try:
        # Captures, reconstructions and originals are personal data: the owner's alone.
        directory.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        raise ResourceError(
            f"{directory} exists already; runs are never overwritten: "
            "name another directory or remove this one"
        ) from None
    except NotADirectoryError:
        raise ResourceError(
            f"cannot make {directory}: a part of it is a file; name another place"
        ) from None
    except OSError as error:
        raise ResourceError(
            f"cannot make {directory} ({error.strerror or error}): make the place writable for "
            f"user {os.getuid()}, or name another"
        ) from error
    return directory


def write_environment(path: Path, **more: str) -> None:
    """Write down versions, machine and time, and what else is given."""
    environment = {
        **_software(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }
    write_atomic(path, json.dumps(environment, indent=1).encode())


@functools.cache
def _software() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in _VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {**versions, "python": platform.python_version()}
