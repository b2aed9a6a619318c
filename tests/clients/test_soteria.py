"""Soteria: what is zeroed, against the paper's definition, and what is left as it was."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from clients.defenses import Soteria, acting
from clients.defenses.soteria import certified_distance, largest, ratios
from clients.training import train
from fedleak.gradients import Representation
from fedleak.models.lenet import LeNet
from fedleak.records import Dataset, Setting, TrainingFacts

FACTS = TrainingFacts(lr=0.1, steps=1, batch_size=4, examples=4)
SHAPE = (1, 16, 16)


@pytest.fixture
def lenet():
    torch.manual_seed(3)
    return LeNet(pooling="average").build(SHAPE, 5).double()


def batch(count=4, shape=SHAPE):
    generator = torch.Generator().manual_seed(8)
    inputs = torch.rand(count, *shape, generator=generator, dtype=torch.float64)
    return inputs, torch.arange(count) % 5


def stepped(defense, model, inputs, labels, turn):
    """Gradients by name before and after the defense, and its metrics."""
    model.zero_grad()
    functional.cross_entropy(model(inputs), labels).backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    with defense.training(model, turn()) as step:
        metrics = step(inputs, labels)
    return before, {name: p.grad for name, p in model.named_parameters()}, metrics


def by_loop(model, layer, inputs, labels, count):
    """Alg. 1 and 2 as they stand, one backward pass for each sample and feature."""
    module, chosen, masked = model.get_submodule(layer), [], torch.zeros(())
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _, given, output: seen.update(r=given[0], b=output))
    ]
    for sample, label in zip(inputs, labels, strict=True):
        variable = sample[None].clone().requires_grad_()
        loss = functional.cross_entropy(model(variable), label[None])
        r, b = seen["r"], seen["b"]
        scores = []
        for i in range(r.shape[1]):
            (slope,) = torch.autograd.grad(r[0, i], variable, retain_graph=True)
            scores.append(float(r[0, i].detach().abs()) / max(float(slope.norm()), 1e-300))
        zeroed = sorted(range(len(scores)), key=lambda i: -scores[i])[:count]
        chosen.append({i for i in zeroed if r[0, i] != 0})
        perturbed = r.detach().clone()
        perturbed[0, zeroed] = 0
        (slope,) = torch.autograd.grad(loss, b)
        masked = masked + slope.T @ perturbed / len(inputs)
    for hook in hooks:
        hook.remove()
    return chosen, masked


@pytest.mark.parametrize(("layer", "width"), [("fc1", 16), ("fc2", 120), ("fc3", 84)])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_same_selection_and_gradient_as_the_loop(lenet, turn, layer, width, rate):
    inputs, labels = batch()
    count = round(rate * width)
    chosen, masked = by_loop(lenet, layer, inputs, labels, count)
    representation = Representation(lenet, layer, True)
    features = representation(inputs)
    zeroed = largest(ratios(features, representation.gradient_norms(inputs)), count)
    ours = [
        {i for i in range(width) if row[i] and r[i] != 0}
        for row, r in zip(zeroed, features, strict=True)
    ]
    assert ours == chosen
    before, after, _ = stepped(Soteria(rate=rate, layer=layer), lenet, inputs, labels, turn)
    torch.testing.assert_close(after[f"{layer}.weight"], masked)
    assert not torch.equal(after[f"{layer}.weight"], before[f"{layer}.weight"])
    for name in before:
        assert name == f"{layer}.weight" or torch.equal(after[name], before[name])


def test_the_papers_definition_where_the_jacobian_is_known(turn):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).double()
    first, second = model[0], model[1]
    x, label = torch.rand(1, 6, dtype=torch.float64), torch.tensor([1])
    r = first(x)[0].detach()
    ratio = r.abs() / first.weight.detach().norm(dim=1)
    zeroed = ratio.topk(2).indices
    before, after, metrics = stepped(Soteria(features=2, layer="1"), model, x, label, turn)
    expected = before["1.weight"].clone()
    expected[:, zeroed] = 0
    torch.testing.assert_close(after["1.weight"], expected)
    assert (after["1.weight"][:, zeroed] == 0).all(), "zero, not small"
    distance = r[zeroed].norm() / torch.linalg.matrix_norm(first.weight.detach(), 2)
    assert metrics["bound"] == pytest.approx(float(distance), rel=0.01)
    assert second.weight.grad is not None


def test_a_layer_that_reads_the_sample_loses_its_brightest_pixels(turn):
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 5)).double()
    inputs, labels = batch(1, (1, 3, 3))
    _, after, metrics = stepped(Soteria(features=4), model, inputs, labels, turn)
    brightest = inputs.flatten().topk(4).indices
    lost = (after["1.weight"] == 0).all(0)
    assert set(lost.nonzero().flatten().tolist()) == set(brightest.tolist())
    assert metrics["bound"] == pytest.approx(float(inputs.flatten()[brightest].norm()))


def test_the_first_dense_layer_is_defended_by_default(lenet, turn):
    inputs, labels = batch()
    _, found, _ = stepped(Soteria(), copy.deepcopy(lenet), inputs, labels, turn)
    _, named, _ = stepped(Soteria(layer="fc1"), lenet, inputs, labels, turn)
    assert all(torch.equal(found[name], named[name]) for name in named)


@pytest.mark.parametrize("defense", [Soteria(rate=0.0), Soteria(features=0)])
def test_nothing_zeroed_leaves_every_gradient_bit_for_bit(lenet, turn, defense):
    before, after, metrics = stepped(defense, lenet, *batch(), turn)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert metrics == {"bound": 0.0}


def test_features_without_a_slope_or_without_a_value():
    features = torch.tensor([[0.0, 2.0, -3.0, 0.0]])
    norms = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert ratios(features, norms).tolist() == [[0.0, torch.inf, 3.0, 0.0]]
    assert largest(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 1).tolist() == [
        [False, True, False, False]
    ]
    distances = certified_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([0.0, 2.0]))
    assert distances.tolist() == [0.0, 2.5]


class Nets:
    convolution = nn.Conv2d(1, 5, 16)
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(256, 5).requires_grad_(False))
    dropout = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 5))
    mixed = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(256, 5))


@pytest.mark.parametrize(
    ("defense", "model", "said"),
    [
        (Soteria(), Nets.convolution, "this model trains none"),
        (Soteria(), Nets.frozen, "this model trains none"),
        (Soteria(layer="fc4"), None, "there are: fc1, fc2, fc3. Did you mean 'fc"),
        (Soteria(layer="conv1"), None, "no dense layer 'conv1' is trained; there are: fc1"),
        (Soteria(), Nets.dropout, "set client.train_mode = false"),
        (Soteria(), Nets.mixed, "behind batch norm set client.train_mode = false"),
        (Soteria(features=16), None, "features = 16 would be all, or more, of the 16 of 'fc1'"),
    ],
)
def test_what_it_cannot_defend_is_refused(lenet, defense, model, said):
    model = lenet.float() if model is None else model
    assert said in defense.unsupported(Setting(model, FACTS, SHAPE, 5))


@pytest.mark.parametrize("model", [Nets.dropout, Nets.mixed])
def test_evaluation_mode_is_the_remedy(model, turn):
    assert Soteria().unsupported(Setting(model, replace(FACTS, train_mode=False), SHAPE, 5)) is None


def test_several_local_steps_each_zero_their_own_batch(turn):
    torch.manual_seed(4)
    model = LeNet().build((1, 28, 28), 10)
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    rng = np.random.default_rng(6)
    dataset = Dataset(rng.random((6, 1, 28, 28)), rng.integers(0, 10, 6), 10)
    batches = [np.arange(2), np.arange(2, 5), np.array([5])]
    expected, lr = copy.deepcopy(model).double(), 0.1
    for batch in batches:
        inputs = torch.from_numpy(dataset.samples(batch)).double()
        labels = torch.from_numpy(dataset.labels[batch])
        _, masked = by_loop(expected, "fc1", inputs, labels, round(0.5 * 256))
        expected.zero_grad()
        functional.cross_entropy(expected(inputs), labels).backward()
        expected.fc1.weight.grad = masked
        with torch.no_grad():
            for parameter in expected.parameters():
                parameter -= lr * parameter.grad
    metrics = {}
    facts = TrainingFacts(lr=lr, steps=3, batch_size=3, examples=6)
    with acting([Soteria(rate=0.5)], model, replace(turn(), facts=facts), metrics) as act:
        train(model, dataset, batches, facts, torch.device("cpu"), act)
    assert metrics["soteria/bound"] > 0
    for name, value in model.state_dict().items():
        moved, should = value - sent[name], expected.state_dict()[name] - sent[name].double()
        torch.testing.assert_close(moved.double(), should, rtol=1e-2, atol=1e-6)
    untouched = (model.fc1.weight == sent["fc1.weight"]).all(0)
    assert untouched.any(), "features that every sample lost come back as they were sent"
