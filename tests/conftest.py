"""For tests of any package: the command line as a user meets it, and refusals."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

# Before torch is imported, here and in every process that a test starts: several threads in
# each of several processes wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from fedleak import cli
from fedleak.errors import ScenarioError

TINY = """
name = "tiny"
seed = 3
data = { kind = "digits" }
model = { kind = "mlp" }
federation = { clients = 2, rounds = 1 }
audit = { attacks = [{ kind = "analytic" }] }
"""


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """Standard error as one line: messages are wrapped to the terminal."""
        return " ".join(self.err.split())


Fedleak = Callable[..., Result]


@pytest.fixture
def fedleak(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Fedleak:
    """Runs ``fedleak ARGUMENTS`` through its entry point, in an 80-column terminal.

    The working directory is a new one with a small valid scenario, ``tiny.toml``.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "tiny.toml").write_text(TINY)

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["fedleak", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        text = capfd.readouterr()
        code = stopped.value.code
        assert isinstance(code, int)
        return Result(code, text.out, text.err)

    return call


@pytest.fixture
def refused() -> Callable[..., str]:
    """Calls something that must raise a ScenarioError at a key path; gives its message."""

    def call(path: str, function: Callable[..., object], *args: object) -> str:
        with pytest.raises(ScenarioError) as caught:
            function(*args)
        assert [problem.path for problem in caught.value.problems] == [path]
        return caught.value.problems[0].message

    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Federations in processes and containers take longest and mostly wait: they begin first."""
    items.sort(key=lambda item: "deployment" not in item.path.name)
