"""A tiny finished federation, and attacks whose outcome is known beforehand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch

from fedleak.attacks import Attack
from fedleak.attacks.attack import Progress
from fedleak.federation import run
from fedleak.records import Observation, Reconstruction, Setting
from fedleak.scenario import Prepared, Scenario, load_scenario, prepare

SCENARIO: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "data": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [32]},
    "federation": {"clients": 2, "rounds": 2},
    "client": {"batch_size": 3},
    "audit": {"attacks": [{"kind": "analytic"}]},
}


class Scripted(Attack):
    """Does what a test told it to."""

    kind: Literal["scripted"] = "scripted"
    variant: int = 0
    script: ClassVar[Callable[[Observation], Reconstruction]]
    refusal: ClassVar[str | None] = None
    calls: ClassVar[list[int]] = []

    def unsupported(self, setting: Setting) -> str | None:
        return type(self).refusal

    def reconstruct(
        self, observation: Observation, seed: int, progress: Progress | None = None
    ) -> Reconstruction:
        type(self).calls.append(seed)
        return type(self).script(observation)


def blank(observation: Observation) -> Reconstruction:
    return Reconstruction(
        inputs=torch.zeros(observation.samples, *observation.input_shape),
        labels=torch.zeros(observation.samples, dtype=torch.int64),
        confidence=torch.zeros(observation.samples),
    )


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    """The scripted attack, which gives blank images until a test changes ``script``."""
    monkeypatch.setattr(Scripted, "calls", [])
    monkeypatch.setattr(Scripted, "refusal", None)
    monkeypatch.setattr(Scripted, "script", staticmethod(blank), raising=False)
    return Scripted


@pytest.fixture
def fails(scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Let the scripted attack raise on the first capture that it sees."""

    def arrange(error: Exception) -> None:
        def script(observation: Observation) -> Reconstruction:
            if len(scripted.calls) == 1:
                raise error
            return blank(observation)

        monkeypatch.setattr(scripted, "script", staticmethod(script))

    return arrange


@pytest.fixture(scope="session")
def scenario() -> Scenario:
    return load_scenario(SCENARIO)


@pytest.fixture(scope="session")
def prepared(scenario: Scenario) -> Prepared:
    return prepare(scenario)


@pytest.fixture(scope="session")
def captured(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not audited; not to be changed."""
    return run(scenario, directory=tmp_path_factory.mktemp("captured") / "run")


@pytest.fixture
def directory(captured: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(captured, tmp_path / "run"))
