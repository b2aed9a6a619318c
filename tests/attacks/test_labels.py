from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks.labels import labels_unsupported, recover_labels
from fedleak.records import Observation, Setting, TrainingFacts

Observe = Callable[..., Observation]


def mlp(bias: bool = True, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 40), activation(), nn.Linear(40, 10, bias=bias)
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh])
def test_one_label_is_always_exact(
    observe: Observe, digits: tuple[Tensor, Tensor], bias: bool, activation: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    images, labels = digits
    for i in range(40):
        observation = observe(mlp(bias, activation), images[i : i + 1], labels[i : i + 1])
        assert recover_labels(observation).tolist() == [labels[i]]


@pytest.mark.parametrize("bias", [True, False])
def test_counts_of_batches_with_repeats(
    observe: Observe, digits: tuple[Tensor, Tensor], bias: bool
) -> None:
    """Untrained network, batches of 8: at least 90 % must be exact.

    Without a bias the size of the features has to be guessed as well.
    """
    torch.manual_seed(0)
    images, labels = digits
    exact = 0
    for _ in range(40):
        batch = torch.randint(0, len(images), (8,))
        observation = observe(mlp(bias), images[batch], labels[batch])
        exact += torch.equal(recover_labels(observation), labels[batch].sort().values)
    assert exact >= (36 if bias else 24)


def test_counts_where_predictions_depend_on_the_sample(
    observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    """Large weights: what the probes predict says little, the weight gradient says more.

    The probes alone give 28 of these 40 batches.
    """
    torch.manual_seed(0)
    images, labels = digits
    exact = 0
    for _ in range(40):
        for parameter in sigmoid_net.parameters():
            nn.init.uniform_(parameter, -1.0, 1.0)
        batch = torch.randint(0, len(images), (8,))
        observation = observe(sigmoid_net, images[batch], labels[batch])
        exact += torch.equal(recover_labels(observation), labels[batch].sort().values)
    assert exact >= 32


def test_counts_over_several_steps_with_weight_decay(
    observe: Observe, digits: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    images, labels = digits
    batch = torch.tensor([0, 10, 3, 4])
    told = TrainingFacts(0.01, 4, 2, 4, momentum=0.9, weight_decay=0.1)
    observation = observe(mlp(), images[batch], labels[batch], told)
    assert recover_labels(observation).sort().values.tolist() == [0, 0, 3, 4]


def test_labels_are_found_in_the_order_of_the_steps(
    observe: Observe, digits: tuple[Tensor, Tensor], sigmoid_net: nn.Module
) -> None:
    """Four steps of two, at a learning rate at which predictions swing from step to step.

    Counts from the mean gradient alone are right for 1 of these 8 clients.
    """
    torch.manual_seed(1)
    images, labels = digits
    exact = 0
    for _ in range(8):
        batch = torch.randint(0, len(images), (4,))
        told = TrainingFacts(0.1, 4, 2, 4)
        observation = observe(sigmoid_net, images[batch], labels[batch], told)
        steps = labels[batch].reshape(2, 2).sort(1).values.flatten()
        exact += torch.equal(recover_labels(observation), steps)
    assert exact >= 7


def test_labels_that_are_too_many_to_rehearse_are_counted(
    observe: Observe, digits: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    images, labels = digits
    told = TrainingFacts(0.01, 2, 64, 128)
    observation = observe(mlp(), images[:128], labels[:128], told)
    found = recover_labels(observation)
    assert found.diff().min() >= 0
    missed = (found.bincount(minlength=10) - labels[:128].bincount(minlength=10)).abs()
    assert missed.sum() <= 12


def test_a_model_without_a_final_dense_layer_is_unsupported() -> None:
    told = TrainingFacts(0.1, 1, 1, 1)
    convolutional = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    reason = labels_unsupported(Setting(convolutional, told, (1, 8, 8), 10))
    assert reason is not None and "this model has none" in reason
    reason = labels_unsupported(Setting(mlp(), told, (1, 8, 8), 7))
    assert reason is not None and "the model has 10, not 7" in reason
    reason = labels_unsupported(Setting(mlp(), told, (1, 9, 9), 10))
    assert reason is not None and "does not accept" in reason
    assert labels_unsupported(Setting(mlp(), told, (1, 8, 8), 10)) is None
