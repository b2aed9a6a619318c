from __future__ import annotations

from collections.abc import Callable

import pytest

from fedleak.errors import ScenarioError


@pytest.fixture
def refused() -> Callable[..., str]:
    """Calls something that must raise a ScenarioError at a key path; gives its message."""

    def call(path: str, function: Callable[..., object], *args: object) -> str:
        with pytest.raises(ScenarioError) as caught:
            function(*args)
        assert [problem.path for problem in caught.value.problems] == [path]
        return caught.value.problems[0].message

    return call
