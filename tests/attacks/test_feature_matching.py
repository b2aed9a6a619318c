from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks import GS, FeatureMatching
from fedleak.records import Observation, Setting, TrainingFacts

Observe = Callable[..., Observation]


def network(activation: type[nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        activation(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        activation(),
        nn.Flatten(),
        nn.Linear(128, 40, bias=bias),
        activation(),
        nn.Linear(40, 10),
    )


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_cut_network_has_the_gradients_of_the_whole(
    observe: Observe,
    digits: tuple[Tensor, Tensor],
    activation: type[nn.Module],
    weight_decay: float,
) -> None:
    """At the sample itself, what is searched for is what the client sent."""
    images, labels = digits
    facts = TrainingFacts(0.1, 1, 1, 1, weight_decay=weight_decay)
    observation = observe(network(activation).double(), images[:1].double(), labels[:1], facts)
    search = FeatureMatching(precision="float64")._prepare(observation, seed=0)
    assert list(search.target) == ["0.weight", "0.bias", "3.weight", "3.bias", "6.weight"]
    found = search.mapping(images[None, :1].double(), search.labels[:1])
    for name, value in search.target.items():
        assert (found[name] - value).norm() < 1e-9 * value.norm()


def test_it_comes_closer_than_gs_behind_relu(
    observe: Observe, digits: tuple[Tensor, Tensor], psnr: Callable[[Tensor, Tensor], Tensor]
) -> None:
    images, labels = digits
    observations = [observe(network(), images[[i]], labels[[i]]) for i in range(4)]
    ours = FeatureMatching(restarts=2, iterations=300)
    theirs = GS(restarts=2, iterations=300, relative_tv=0.3)
    gained = []
    for i, observation in enumerate(observations):
        found, other = (attack.reconstruct(observation, seed=0) for attack in (ours, theirs))
        assert found.labels is not None and found.labels.tolist() == labels[[i]].tolist()
        gained.append(psnr(found.inputs, images[[i]]) - psnr(other.inputs, images[[i]]))
    assert torch.stack(gained).min() > 0.5 and torch.stack(gained).mean() > 5


def test_soft_gates_find_more(
    observe: Observe, digits: tuple[Tensor, Tensor], psnr: Callable[[Tensor, Tensor], Tensor]
) -> None:
    images, labels = digits
    observations = [observe(network(), images[[i]], labels[[i]]) for i in range(4)]
    attack = FeatureMatching(restarts=2, iterations=300)

    def mean(attack: FeatureMatching) -> float:
        found = [attack.reconstruct(observation, seed=0).inputs for observation in observations]
        ratios = [psnr(inputs, images[[i]]) for i, inputs in enumerate(found)]
        return float(torch.stack(ratios).mean())

    reached = mean(attack)
    assert reached > mean(attack.model_copy(update={"smoothing": 0.0})) + 1


def test_clients_are_attacked_together_as_alone(
    observe: Observe, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits
    observations = [observe(network(nn.Sigmoid), images[[i]], labels[[i]]) for i in range(3)]
    attack = FeatureMatching(restarts=2, iterations=5)
    (together,) = attack.reconstruct_each(observations, [0, 1, 2])
    assert sorted(together) == [0, 1, 2]
    for seed, observation in enumerate(observations):
        alone = attack.reconstruct(observation, seed)
        found = together[seed]
        assert not isinstance(found, Exception)
        assert torch.allclose(found.inputs, alone.inputs, atol=1e-5)
        assert torch.equal(found.labels, alone.labels)


def test_known_labels_are_returned(observe: Observe, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    observation = observe(network(), images[:1], labels[:1])
    known = Observation(**{**vars(observation), "labels": torch.tensor([7])})
    found = FeatureMatching(iterations=1, labels="known").reconstruct(known, seed=0)
    assert found.labels is not None and found.labels.tolist() == [7]


@pytest.mark.parametrize(
    ("model", "facts", "reason"),
    [
        (network(bias=False), TrainingFacts(0.1, 1, 1, 1), "needs a bias .* '6' has none"),
        (network(), TrainingFacts(0.1, 1, 2, 2), "one step on one sample"),
        (network(), TrainingFacts(0.1, 2, 1, 1), "one step on one sample"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
            TrainingFacts(0.1, 1, 1, 1),
            "'1' itself sees the input",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()),
            TrainingFacts(0.1, 1, 1, 1),
            "this model has none",
        ),
    ],
    ids=["no bias", "two samples", "two steps", "dense first", "no dense layer"],
)
def test_what_it_cannot_work_on_is_unsupported(
    model: nn.Module, facts: TrainingFacts, reason: str
) -> None:
    said = FeatureMatching().unsupported(Setting(model, facts, (1, 8, 8), 10))
    assert said is not None and re.search(reason, said)
