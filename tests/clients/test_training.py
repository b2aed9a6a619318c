"""Local training against hand-written SGD in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from clients.training import train
from fedleak.records import Dataset, TrainingFacts
from fedleak.seeding import reproducible

CPU = torch.device("cpu")


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    return Dataset(rng.random((12, 1, 3, 3)), rng.integers(0, 4, 12), 4)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 4))


@pytest.mark.parametrize(
    "facts",
    [
        TrainingFacts(lr=0.3, steps=1, batch_size=4, examples=12),
        TrainingFacts(lr=0.3, steps=3, batch_size=4, examples=12, momentum=0.9),
        TrainingFacts(lr=0.1, steps=3, batch_size=4, examples=12, weight_decay=0.05),
        TrainingFacts(lr=0.1, steps=3, batch_size=4, examples=12, proximal_mu=0.4),
        TrainingFacts(
            lr=0.1,
            steps=3,
            batch_size=4,
            examples=12,
            momentum=0.5,
            weight_decay=0.1,
            proximal_mu=0.2,
        ),
    ],
)
def test_training_is_sgd_written_by_hand(dataset, facts):
    batches = [np.arange(4 * k, 4 * k + 4) for k in range(facts.steps)]
    model, reference = network(), network().double()
    loss = train(model, dataset, batches, facts, CPU)

    start = [p.detach().clone() for p in reference.parameters()]
    velocity = [torch.zeros_like(p) for p in start]
    losses = []
    for batch in batches:
        inputs = torch.from_numpy(dataset.inputs[batch])
        value = cross_entropy(reference(inputs), torch.from_numpy(dataset.labels[batch]))
        losses.append(value.item())
        gradients = torch.autograd.grad(value, list(reference.parameters()))
        with torch.no_grad():
            for p, g, v, p0 in zip(reference.parameters(), gradients, velocity, start, strict=True):
                step = g + facts.weight_decay * p + facts.proximal_mu * (p - p0)
                v.mul_(facts.momentum).add_(step)
                p.sub_(facts.lr * v)

    assert loss == pytest.approx(np.mean(losses), rel=1e-6)
    for trained, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(trained.double(), expected, rtol=1e-5, atol=1e-7)


def test_dropout_depends_on_the_seed_alone(dataset):
    facts = TrainingFacts(lr=0.3, steps=1, batch_size=12, examples=12)

    def trained(seed, draw_before):
        model = nn.Sequential(network(), nn.Dropout(0.5))
        torch.rand(draw_before)
        with reproducible(seed):
            train(model, dataset, [np.arange(12)], facts, CPU)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(trained(1, 0), trained(1, 7))
    assert not torch.equal(trained(1, 0), trained(2, 0))


def test_eval_mode_leaves_batch_norm_statistics_alone(dataset):
    facts = TrainingFacts(lr=0.3, steps=1, batch_size=12, examples=12, train_mode=False)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))
    train(model, dataset, [np.arange(12)], facts, CPU)
    assert torch.equal(model[2].running_mean, torch.zeros(5))
    assert int(model[2].num_batches_tracked) == 0


def test_a_batch_of_nobody_moves_nothing_but_what_pulls_weights(dataset):
    facts = TrainingFacts(lr=0.1, steps=2, batch_size=4, examples=12, weight_decay=0.05)
    nobody = np.array([], dtype=np.int64)
    model, alone = network(), network()
    loss = train(model, dataset, [nobody, np.arange(4)], facts, CPU)
    with torch.no_grad():
        for weight in alone.parameters():
            weight.mul_(1 - 0.1 * 0.05)
    assert loss == pytest.approx(train(alone, dataset, [np.arange(4)], facts, CPU))
    for trained, expected in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(trained, expected)
    assert train(model, dataset, [nobody], facts, CPU) == 0.0
