"""Products with JJ' against a Jacobian made by autograd, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.gradients import Curvature, UpdateMap, eigen_noise
from fedleak.models.lenet import LeNetDlg
from fedleak.records import TrainingFacts

SHAPE, CLASSES, SAMPLES = (1, 4, 4), 4, 3


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, CLASSES)
    ).double()


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(SAMPLES, *SHAPE, generator=generator, dtype=torch.float64)
    return inputs, torch.tensor([0, 3, 1])


def update_map(model: nn.Module, samples: int = SAMPLES) -> UpdateMap:
    facts = TrainingFacts(0.1, 1, samples, samples, train_mode=False)
    return UpdateMap(model, dict(model.named_parameters()), {}, facts)


def oracle(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """``J``, samples first, ``(b * pixels, parameters)``."""

    def gradient(at: Tensor) -> Tensor:
        loss = functional.cross_entropy(model(at), labels)
        slopes = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        return torch.cat([slope.flatten() for slope in slopes])

    jacobian = torch.autograd.functional.jacobian(gradient, inputs)
    return jacobian.flatten(1).T


@pytest.mark.parametrize("chosen", [slice(None), slice(1, 2)], ids=["all samples", "one"])
def test_its_products_are_those_of_the_jacobian(
    model: nn.Module, samples: tuple[Tensor, Tensor], chosen: slice
) -> None:
    curvature = Curvature(update_map(model), *samples, chosen)
    jacobian = oracle(model, *samples).reshape(SAMPLES, 16, -1)[chosen].flatten(0, 1)
    assert curvature.size == len(jacobian)
    torch.testing.assert_close(curvature.dense(), jacobian @ jacobian.T)
    values = torch.randn(curvature.size, dtype=torch.float64)
    torch.testing.assert_close(curvature @ values, jacobian @ (jacobian.T @ values))
    pushed = torch.cat([value.flatten() for value in curvature.push(values).values()])
    torch.testing.assert_close(pushed, jacobian.T @ values)
    noise = {name: torch.randn_like(value) for name, value in curvature.update.items()}
    flat = torch.cat([value.flatten() for value in noise.values()])
    torch.testing.assert_close(curvature.pull(noise), jacobian @ flat)


def test_conjugate_gradients_solve_or_say_that_they_do_not(
    model: nn.Module, samples: tuple[Tensor, Tensor]
) -> None:
    curvature = Curvature(update_map(model), *samples)
    values = torch.randn(curvature.size, dtype=torch.float64)
    damping = 1e-4 * curvature.largest(seed=0)
    found = curvature.solve(values, damping, steps=1000)
    assert found is not None
    matrix = curvature.dense() + damping * torch.eye(curvature.size)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, values), rtol=1e-4, atol=1e-4)
    assert curvature.solve(values, damping, steps=2) is None


def test_the_largest_eigenvalue_has_three_digits_after_fifty_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is one JVP and one VJP: a hundred evaluations of a gradient's kind."""
    torch.manual_seed(0)
    net = LeNetDlg().build((1, 28, 28), 10).double()
    inputs = torch.rand(1, 1, 28, 28, dtype=torch.float64)
    curvature = Curvature(update_map(net, 1), inputs, torch.tensor([3]))
    products = 0
    pull = Curvature.pull

    def counted(self: Curvature, update: dict[str, Tensor]) -> Tensor:
        nonlocal products
        products += 1
        return pull(self, update)

    monkeypatch.setattr(Curvature, "pull", counted)
    found = curvature.largest(seed=0)
    assert found == pytest.approx(float(torch.linalg.eigvalsh(curvature.dense())[-1]), rel=1e-3)
    assert products <= 50


def test_noise_along_an_eigenvector_costs_the_attacker_its_inverse_eigenvalue(
    model: nn.Module, samples: tuple[Tensor, Tensor]
) -> None:
    inputs, labels = samples[0][:1], samples[1][:1]
    curvature = Curvature(update_map(model, 1), inputs, labels)
    jacobian = oracle(model, inputs, labels)
    eigenvalues, noise = eigen_noise(curvature)
    singular = torch.linalg.svdvals(jacobian)
    torch.testing.assert_close(eigenvalues, singular.square())
    for index in (0, 5, 15):
        delta = torch.cat([value.flatten() for value in noise(index).values()])
        assert float(delta.norm()) == pytest.approx(1)
        moved = torch.linalg.solve(jacobian @ jacobian.T, jacobian @ delta)
        assert float(moved.square().sum()) == pytest.approx(1 / float(eigenvalues[index]), 1e-6)


def test_the_perfect_attacker_errs_by_as_much_as_predicted(
    model: nn.Module, samples: tuple[Tensor, Tensor]
) -> None:
    """Least squares from the truth on, by scipy, is that attacker for small noise."""
    from scipy.optimize import least_squares

    inputs, labels = samples[0][:1], samples[1][:1]
    mapping = update_map(model, 1)
    curvature = Curvature(mapping, inputs, labels)
    jacobian = oracle(model, inputs, labels)
    eigenvalues, noise = eigen_noise(curvature)
    truth = inputs.flatten().numpy()

    def flat(update: dict[str, Tensor]) -> Tensor:
        return torch.cat([value.flatten() for value in update.values()])

    def residual(values: object) -> object:
        at = torch.as_tensor(values).reshape(1, 1, *SHAPE)
        return (flat(mapping(at, labels[None])) - released).numpy()

    released = flat(curvature.update)
    for index in (0, 7, 15):
        errors = []
        for size in (1e-3, 1e-4):
            scale = size * math.sqrt(float(eigenvalues[index]))
            released = flat(curvature.update) + scale * flat(noise(index))
            slope = lambda x: oracle(model, torch.as_tensor(x).reshape(1, *SHAPE), labels).T.numpy()  # noqa: E731
            found = least_squares(residual, truth, jac=slope, xtol=1e-15, ftol=1e-15, gtol=1e-15)
            error = float(torch.as_tensor(found.x - truth).norm())
            errors.append(abs(error - size) / size)
        # To first order: ten times less noise, ten times less deviation from it.
        assert errors[0] < 0.05
        assert errors[1] < 0.2 * errors[0] + 1e-5
    assert jacobian.shape[0] == 16
