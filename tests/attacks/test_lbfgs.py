from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import rosen, rosen_der
from torch import Tensor

from fedleak.attacks.lbfgs import minimise


def rosenbrock(points: Tensor) -> tuple[Tensor, Tensor]:
    values = torch.tensor([rosen(point) for point in points.numpy()])
    gradients = torch.from_numpy(np.stack([rosen_der(point) for point in points.numpy()]))
    return values, gradients


START = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (5, 6)))


def test_finds_the_minimum_of_every_problem() -> None:
    points, values = minimise(rosenbrock, START, 300)
    assert (values < 1e-10).all()
    # Rosenbrock has a second, local minimum from four dimensions on; rosen is 0 at ones.
    torch.testing.assert_close(points, torch.ones_like(points), rtol=0, atol=1e-4)


def test_problems_do_not_influence_each_other() -> None:
    together, _ = minimise(rosenbrock, START, 60)
    for start, point in zip(START, together, strict=True):
        alone, _ = minimise(rosenbrock, start[None], 60)
        torch.testing.assert_close(alone[0], point, rtol=1e-12, atol=1e-12)


def test_one_that_is_not_finite_stops_alone() -> None:
    def sometimes(points: Tensor) -> tuple[Tensor, Tensor]:
        values, gradients = rosenbrock(points)
        values[1], gradients[1] = torch.nan, torch.nan
        gradients[2, 0] = torch.inf
        return values, gradients

    points, values = minimise(sometimes, START, 300)
    assert values[[1, 2]].tolist() == [torch.inf, torch.inf]
    assert torch.equal(points[[1, 2]], START[[1, 2]])
    assert (values[[0, 3, 4]] < 1e-10).all()


def test_steps_over_a_cliff_are_taken_back() -> None:
    """The value is infinite beyond 2; the minimum is close to that edge."""

    def walled(points: Tensor) -> tuple[Tensor, Tensor]:
        room = 2 - points
        values = (-points - 1e-3 * room.log()).sum(1)
        return values, -1 + 1e-3 / room

    points, _ = minimise(walled, torch.zeros(2, 3, dtype=torch.float64), 200)
    torch.testing.assert_close(points, torch.full_like(points, 1.999), rtol=0, atol=1e-6)


@pytest.mark.parametrize("evaluations", [1, 2, 7])
def test_the_budget_is_kept_and_reported(evaluations: int) -> None:
    calls = 0

    def counted(points: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return rosenbrock(points)

    seen: list[tuple[int, Tensor]] = []

    def report(evaluation: int, _: Tensor, values: Tensor) -> bool:
        seen.append((evaluation, values))
        return True

    minimise(counted, START, evaluations, report=report)
    assert calls == evaluations
    assert [n for n, _ in seen] == list(range(1, evaluations + 1))
    for (_, before), (_, after) in zip(seen, seen[1:], strict=False):
        assert (after <= before).all()


def test_it_ends_when_told_to() -> None:
    for last in (1, 5):
        told: list[int] = []

        def report(evaluation: int, _: Tensor, __: Tensor, told: list[int] = told) -> bool:
            told.append(evaluation)
            return len(told) < last

        minimise(rosenbrock, START, 300, report=report)
        assert told == list(range(1, last + 1))
