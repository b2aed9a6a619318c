from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks import Representation
from fedleak.attacks.representation import class_representations
from fedleak.records import Observation, Setting, TrainingFacts

Observe = Callable[..., Observation]


def network(activation: type[nn.Module], bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 200),
        activation(),
        nn.Linear(200, 50, bias=bias),
        activation(),
        nn.Linear(50, 10),
    )


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh])
def test_one_class_is_exact_in_every_dense_layer(
    observe: Observe, digits: tuple[Tensor, Tensor], activation: type[nn.Module]
) -> None:
    images, labels = digits
    model = network(activation)
    inferred = class_representations(
        observe(model, images[:1], labels[:1]), labels[:1], torch.tensor([1])
    )
    assert list(inferred) == ["1", "3", "5"]
    for name, found in inferred.items():
        given = model[: int(name)](images[:1]).double()
        assert (found - given).norm() < 1e-3 * given.norm()


def test_classes_are_told_apart(observe: Observe, digits: tuple[Tensor, Tensor]) -> None:
    """The final layer's are exact for one sample of each; those before correlate."""
    images, labels = digits
    model = network(nn.ReLU)
    inferred = class_representations(
        observe(model, images[:3], labels[:3]), labels[:3], torch.ones(3, dtype=torch.int64)
    )
    for name, least in (("5", 0.999), ("3", 0.9), ("1", 0.8)):
        given = model[: int(name)](images[:3]).double()
        for found, true in zip(inferred[name], given, strict=True):
            assert torch.corrcoef(torch.stack([found, true]))[0, 1] > least


def test_it_returns_an_image_for_each_class(
    observe: Observe, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits
    observation = observe(network(nn.ReLU), images[[0, 1]], labels[[0, 1]])
    attack = Representation(restarts=2, iterations=300, tv=1e-4)
    found = attack.reconstruct(observation, seed=0)
    assert found.labels is not None and found.labels.tolist() == [0, 1]
    for image, true in zip(found.inputs, images[[0, 1]], strict=True):
        assert torch.corrcoef(torch.stack([image.flatten(), true.flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (network(nn.ReLU, bias=False), "'3' has none"),
        (nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()), "this model has none"),
        (
            nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)),
            "batch norm in train mode",
        ),
    ],
    ids=["no bias", "no dense layer", "batch statistics"],
)
def test_what_it_cannot_work_on_is_unsupported(model: nn.Module, reason: str) -> None:
    told = TrainingFacts(0.1, 1, 1, 1)
    answer = Representation().unsupported(Setting(model, told, (1, 8, 8), 10))
    assert answer is not None and reason in answer
    assert Representation().unsupported(Setting(network(nn.ReLU), told, (1, 8, 8), 10)) is None
