from __future__ import annotations

import pytest
import torch

from fedleak.gradients import batches, gradient_weight, mean_gradient
from fedleak.records import TrainingFacts


def test_an_epoch_ends_with_a_short_batch_and_the_next_starts_again() -> None:
    assert batches(TrainingFacts(0.1, 4, 2, 5)) == (
        slice(0, 2),
        slice(2, 4),
        slice(4, 5),
        slice(0, 2),
    )


def test_a_batch_larger_than_the_client_is_the_whole_client() -> None:
    assert batches(TrainingFacts(0.1, 2, 8, 3)) == (slice(0, 3), slice(0, 3))


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradient_weight_is_what_sgd_makes_of_a_constant_gradient(
    steps: int, momentum: float
) -> None:
    parameter = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([parameter], lr=0.5, momentum=momentum)
    for _ in range(steps):
        parameter.grad = torch.ones_like(parameter)
        optimiser.step()
    expected = -parameter.item() / 0.5
    told = TrainingFacts(0.5, steps, 1, steps, momentum=momentum)
    assert gradient_weight(told) == pytest.approx(expected, rel=1e-12)


def test_mean_gradient_of_one_step_is_the_gradient() -> None:
    parameters = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64)}
    gradient = torch.tensor([0.3, 0.4], dtype=torch.float64)
    update = {"w": gradient + 0.1 * parameters["w"]}
    told = TrainingFacts(0.5, 1, 1, 1, weight_decay=0.1)
    torch.testing.assert_close(
        mean_gradient(update, parameters, told)["w"], gradient, rtol=1e-12, atol=0
    )
