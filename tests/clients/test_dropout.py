"""Dropout in local training: against torch's own, from the client's stream, and undone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from clients.defenses import Dropout, acting
from fedleak.records import Setting, TrainingFacts

FACTS = TrainingFacts(lr=0.5, steps=1, batch_size=8, examples=8)


def outputs(model, turn, inputs, defense, runs=1):
    with acting([defense], model, turn, {}):
        return torch.stack([model(inputs) for _ in range(runs)]).detach()


def test_each_input_is_dropped_or_scaled_as_by_torch(turn):
    layer = nn.Linear(5, 4, bias=False)
    model = nn.Sequential(layer)
    seen = []
    layer.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0].detach()))
    inputs = torch.rand(3000, 5) + 0.5
    outputs(model, turn(), inputs, Dropout(rate=0.3))
    (dropped,) = seen
    zero = dropped == 0
    # 15,000 tosses: their share is known to 0.0037 (one deviation).
    assert float(zero.double().mean()) == pytest.approx(0.3, abs=5 * 0.0037)
    torch.testing.assert_close(dropped[~zero], (inputs / 0.7)[~zero])
    # Torch's own has the same expectation and spread.
    own = nn.functional.dropout(inputs, 0.3, training=True)
    assert float(dropped.var()) == pytest.approx(float(own.var()), rel=0.1)


def test_only_named_layers_drop_and_nothing_is_left_behind(model, turn):
    before = copy.deepcopy(model.state_dict())
    inputs = torch.rand(2, 1, 8, 8)
    plain = model(inputs)
    hidden = []
    model[1].register_forward_hook(lambda layer, inputs, output: hidden.append(output.detach()))
    dropped = outputs(model, turn(), inputs, Dropout(layers=("3",)))[0]
    assert not torch.allclose(dropped, plain)
    assert torch.equal(hidden[0], model[1](model[0](inputs)))
    assert torch.equal(model(inputs), plain)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_masks_are_the_clients_and_the_rounds_own(model, turn):
    inputs = torch.rand(4, 1, 8, 8)
    mine = outputs(model, turn(), inputs, Dropout(), runs=2)
    assert torch.equal(mine, outputs(model, turn(), inputs, Dropout(), runs=2))
    assert not torch.allclose(mine[0], mine[1])  # a mask of each step's own
    for other in (turn(client=1), turn(round=2), turn(seed=2)):
        assert not torch.allclose(mine, outputs(model, other, inputs, Dropout(), runs=2))


def test_a_dropped_input_leaves_no_trace_in_the_gradient(turn):
    """The weight gradient is the outer product with the inputs that were kept."""
    layer = nn.Linear(64, 3)
    inputs = torch.rand(1, 64) + 0.5
    with acting([Dropout(rate=0.5)], nn.Sequential(layer), turn(), {}):
        nn.functional.cross_entropy(layer(inputs), torch.tensor([1])).backward()
    ratio = (layer.weight.grad / layer.bias.grad[:, None]).numpy()
    kept = ratio[0] != 0
    assert 10 < kept.sum() < 54
    np.testing.assert_allclose(ratio[:, kept], np.tile(2 * inputs.numpy()[0, kept], (3, 1)), 1e-5)


def test_a_layer_that_is_not_dense_is_refused_with_those_that_are(model):
    def reason(net, **settings):
        return Dropout(**settings).unsupported(Setting(net, FACTS, (1, 8, 8), 10))

    assert reason(model) is None
    assert reason(model, layers=("2",)).startswith("no dense layer '2'; there are: 1, 3.")
    assert "this model has none" in reason(nn.Conv2d(1, 1, 3))
