from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"kind": "digits"},
    "model": {"kind": "mlp"},
    "federation": {"clients": 2, "rounds": 2},
    "audit": {"attacks": [{"kind": "analytic"}]},
}


@pytest.fixture
def tiny() -> Callable[..., dict[str, Any]]:
    """A small valid scenario as a mapping; keyword arguments replace or add tables."""

    def make(**tables: Any) -> dict[str, Any]:
        return {**copy.deepcopy(TINY), **tables}

    return make
