from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.gates import SoftGates
from fedleak.gradients import UpdateMap, squared_distance
from fedleak.records import TrainingFacts


def slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(at).sum(), at)
    return found


@pytest.mark.parametrize(
    "relu", [functional.relu, torch.relu, Tensor.relu, nn.ReLU(), nn.ReLU(inplace=True)]
)
def test_relu_keeps_its_values_and_has_the_slopes_of_softplus(
    relu: Callable[[Tensor], Tensor],
) -> None:
    inputs = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    width = 0.5 * inputs.flatten(1).std(1).reshape(3, 1, 1, 1)
    with SoftGates(0.5):
        value, found = relu(inputs.clone()), slope(lambda x: relu(x + 0), inputs)
    torch.testing.assert_close(value, inputs.clamp(min=0), rtol=0, atol=1e-15)
    torch.testing.assert_close(found, torch.sigmoid(inputs / width))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "up"),
    [
        (2, None, 0, 1, False),
        (3, 2, 1, 1, False),
        ((2, 3), (1, 2), 0, 1, False),
        (3, 2, 1, 1, True),
        (2, 3, 0, 1, True),
        (2, 2, 1, (2, 3), False),
        (2, 2, 1, 2, True),
    ],
)
def test_max_pooling_keeps_its_values_and_shares_its_slope_by_softmax(
    kernel: int, stride: int | None, padding: int, dilation: int, up: bool
) -> None:
    inputs = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    pool = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=up)
    with SoftGates(0.5):
        value, soft = pool(inputs), slope(pool, inputs)
    torch.testing.assert_close(value, pool(inputs), rtol=0, atol=1e-15)
    assert (soft >= 0).all() and not torch.equal(soft, slope(pool, inputs))
    torch.testing.assert_close(soft.sum(), torch.tensor(float(value.numel())).double())
    with SoftGates(1e-7):
        narrow = slope(pool, inputs)
    torch.testing.assert_close(narrow, slope(pool, inputs), rtol=0, atol=1e-12)
    if stride is None:
        # Of windows that do not overlap, each slope is a softmax.
        width = 0.5 * inputs.flatten(1).std(1).reshape(2, 1, 1, 1, 1)
        windows = inputs[..., :6, :].unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
        expected = torch.softmax(windows / width, -1)
        got = soft[..., :6, :].unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
        torch.testing.assert_close(got, expected)


def test_narrow_gates_are_the_networks_own() -> None:
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)).double()
    with SoftGates(1e-7):
        soft = slope(network, inputs)
    torch.testing.assert_close(soft, slope(network, inputs))


def test_a_layer_without_spread_has_finite_slopes() -> None:
    with SoftGates(1.0):
        assert slope(functional.relu, torch.zeros(2, 3)).isfinite().all()
        assert slope(nn.MaxPool2d(2), torch.ones(1, 1, 4, 4)).isfinite().all()


def test_pooling_with_indices_is_left_alone() -> None:
    inputs = torch.randn(1, 1, 6, 6)
    with SoftGates(1.0):
        value, indices = functional.max_pool2d(inputs, 2, return_indices=True)
    assert indices.dtype == torch.int64 and torch.equal(value, functional.max_pool2d(inputs, 2))


@pytest.mark.parametrize("batching", ["vmap", "loop", "explicit"])
def test_every_way_of_batching_has_the_same_soft_update(batching: str) -> None:
    """Second derivatives against nested autograd on one sample."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)
    ).double()
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    facts = TrainingFacts(0.1, 1, 1, 1)
    mapping = UpdateMap(network, parameters, {}, facts, batching=batching)  # type: ignore[arg-type]
    inputs = torch.rand(3, 1, 1, 8, 8, dtype=torch.float64)
    labels = torch.tensor([[1], [2], [3]])
    target = {name: value[None] + 0.1 for name, value in parameters.items()}
    with SoftGates(0.3):
        value, found, _ = mapping.value_and_grads(
            lambda update, at, rows: squared_distance(update, target), inputs, labels
        )
        for row in range(3):
            at = inputs[row].clone().requires_grad_()
            own = copy.deepcopy(network)
            loss = functional.cross_entropy(own(at), labels[row])
            slopes = torch.autograd.grad(loss, list(own.parameters()), create_graph=True)
            update = {n: s[None] for n, s in zip(parameters, slopes, strict=True)}
            distance = squared_distance(update, target)
            (expected,) = torch.autograd.grad(distance.sum(), at)
            assert (found[row] - expected).norm() <= 1e-9 * expected.norm()
            torch.testing.assert_close(value[row], distance[0].detach())
