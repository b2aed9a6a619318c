from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "matrix": {"client.batch_size": [1, 2]},
    "data": {"kind": "digits"},
    "model": {"kind": "mlp"},
    "federation": {"clients": 2, "rounds": 1},
    "audit": {"attacks": [{"kind": "analytic"}]},
}


@pytest.fixture
def tiny() -> Callable[..., dict[str, Any]]:
    """A small study as a mapping; keyword arguments replace or add tables."""

    def make(**tables: Any) -> dict[str, Any]:
        return {**copy.deepcopy(TINY), **tables}

    return make
