"""What a dense layer is given, against autograd on single samples and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedleak.gradients import Representation, dense_layers
from fedleak.models.architecture import Normalise
from fedleak.models.lenet import LeNet, LeNetDlg


def convolutional():
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(20, 7), nn.Tanh(), nn.Linear(7, 4)),
    )


CASES = [
    pytest.param(convolutional, "5", (2, 12, 12), id="convolutional"),
    pytest.param(convolutional, "7", (2, 12, 12), id="behind a dense layer"),
    pytest.param(lambda: LeNet(pooling="average").build((1, 20, 20), 4), "fc1", (1, 20, 20),
                 id="LeNet"),
    pytest.param(lambda: LeNet().build((3, 24, 17), 4), "fc1", (3, 24, 17), id="LeNet, oblong"),
    pytest.param(lambda: LeNetDlg().build((1, 9, 9), 4), "fc1", (1, 9, 9), id="LeNet, DLG form"),
]  # fmt: skip


def made(build, shape, samples=3):
    torch.manual_seed(5)
    model = build().double()
    return model, torch.rand(samples, *shape, dtype=torch.float64), torch.arange(samples) % 4


def jacobians(model, layer, inputs):
    """One backward pass for each sample and each feature, ``(n, L, pixels)``."""
    seen = []
    model.get_submodule(layer).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    rows = []
    for sample in inputs:
        variable = sample[None].clone().requires_grad_()
        model(variable)
        features = seen.pop()[0]
        rows.append(
            torch.stack([
                torch.autograd.grad(feature, variable, retain_graph=True)[0].flatten()
                for feature in features
            ])
        )  # fmt: skip
    return torch.stack(rows)


@pytest.mark.parametrize(("build", "layer", "shape"), CASES)
def test_norms_are_those_of_single_backward_passes(build, layer, shape):
    model, inputs, _ = made(build, shape)
    ours = Representation(model, layer, train_mode=True)
    expected = jacobians(model, layer, inputs)
    torch.testing.assert_close(ours.gradient_norms(inputs), expected.norm(dim=2))
    spectral = torch.linalg.matrix_norm(expected, 2)
    torch.testing.assert_close(ours.spectral_norms(inputs), spectral, rtol=0.01, atol=0)
    assert (ours.spectral_norms(inputs) <= spectral * (1 + 1e-12)).all(), "it comes from below"


def test_what_few_features_at_a_time_give(monkeypatch):
    model, inputs, _ = made(convolutional, (2, 12, 12))
    ours = Representation(model, "5", train_mode=True)
    together = ours.gradient_norms(inputs)
    for room in (1, 3):  # twenty features: the last turn is short
        monkeypatch.setattr("fedleak.gradients.representation.fitting", lambda work, device: room)
        torch.testing.assert_close(ours.gradient_norms(inputs), together)


def test_a_linear_network_has_its_weights_for_a_jacobian():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Linear(6, 3)).double()
    rows = model[1].weight.detach()
    ours = Representation(model, "2", train_mode=True)
    inputs = torch.rand(40, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(ours.gradient_norms(inputs), rows.norm(dim=1).expand(40, -1))
    largest = torch.linalg.matrix_norm(rows, 2).expand(40)
    torch.testing.assert_close(ours.spectral_norms(inputs), largest, rtol=0.01, atol=0)


def test_a_layer_that_reads_the_sample_itself():
    model = nn.Sequential(Normalise((0.5,), (0.25,)), nn.Flatten(), nn.Linear(16, 3))
    ours = Representation(model, "2", train_mode=True)
    inputs = torch.rand(5, 1, 4, 4)
    torch.testing.assert_close(ours(inputs), ((inputs - 0.5) / 0.25).flatten(1))
    torch.testing.assert_close(ours.gradient_norms(inputs), torch.full((5, 16), 4.0))
    torch.testing.assert_close(ours.spectral_norms(inputs), torch.full((5,), 4.0))


@pytest.mark.parametrize(("build", "layer", "shape"), CASES)
def test_factors_make_the_weights_gradient(build, layer, shape):
    model, inputs, labels = made(build, shape)
    features, slopes = Representation(model, layer, train_mode=True).factors(inputs, labels)
    functional.cross_entropy(model(inputs), labels).backward()
    torch.testing.assert_close(slopes.T @ features, model.get_submodule(layer).weight.grad)


class Wandering(nn.Module):
    """Dense layers that run once, twice, never, on sequences, and behind batch statistics."""

    def __init__(self):
        super().__init__()
        self.never = nn.Linear(4, 4)
        self.mixed = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.sequence = nn.Linear(2, 2)
        self.twice = nn.Linear(4, 4)
        self.once = nn.Linear(4, 4)

    def forward(self, x):
        given = self.once(self.twice(self.twice(x)))
        given = given + self.sequence(x.reshape(-1, 2, 2)).flatten(1)
        return self.mixed(self.norm(given))


def test_which_dense_layers_have_a_representation():
    assert dense_layers(Wandering(), True, (4,)) == ["once"]
    assert dense_layers(Wandering(), False, (4,)) == ["once", "mixed"]
    assert dense_layers(convolutional(), True, (2, 12, 12)) == ["5", "7"]
    assert dense_layers(nn.Linear(3, 2), True, (3,)) == [""]


@pytest.mark.parametrize(
    ("build", "shape", "windows"),
    [
        (lambda: LeNet().build((3, 32, 32), 4), (3, 32, 32), 25),
        (lambda: LeNet(pooling="average").build((1, 24, 17), 4), (1, 24, 17), 3),
        (lambda: LeNet().build((1, 16, 16), 4), (1, 16, 16), None),
        (lambda: LeNetDlg().build((1, 20, 20), 4), (1, 20, 20), None),
    ],
)
def test_features_that_see_a_part_of_the_image_are_computed_on_it(build, shape, windows):
    model, inputs, _ = made(build, shape, samples=2)
    ours = Representation(model, "fc1", train_mode=True)
    crops = ours._crops(inputs)
    if windows is None:
        assert crops is None
        return
    parts, members = crops
    assert len(members) == windows and sorted(members.flatten().tolist()) == list(
        range(ours(inputs).shape[1])
    )
    assert parts.shape[-1] < shape[-1] or parts.shape[-2] < shape[-2]
    torch.testing.assert_close(ours.gradient_norms(inputs), ours._gradient_norms(inputs))


def test_a_network_that_does_not_slide_has_no_windows():
    class Placed(nn.Module):
        """Features that see one row each, and where it is."""

        def __init__(self):
            super().__init__()
            self.last = nn.Linear(6, 2)

        def forward(self, x):
            rows = x.flatten(1).reshape(len(x), x.shape[2], -1)
            return self.last(rows.square().sum(2) * (1 + torch.arange(x.shape[2])))

    model, inputs = Placed().double(), torch.rand(2, 1, 6, 4, dtype=torch.float64)
    ours = Representation(model, "last", train_mode=True)
    assert ours._crops(inputs) is None
    slopes = 2 * inputs[:, 0].norm(dim=2) * (1 + torch.arange(6))
    torch.testing.assert_close(ours.gradient_norms(inputs), slopes)
