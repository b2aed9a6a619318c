"""Protecting some layers: what is withheld or pruned there, and what is left alone."""

from __future__ import annotations

import copy

import pytest
import torch

from clients.defenses import GradientPruning, UpdateNoise, Withhold, released
from fedleak.records import Setting, TrainingFacts


@pytest.fixture
def before(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def after(model):
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for weight in moved.parameters():
            weight.add_(torch.linspace(-1, 1, weight.numel()).view_as(weight))
    return moved


def test_what_is_withheld_comes_back_as_it_was_sent(before, after, turn):
    trained = {name: value.clone() for name, value in after.state_dict().items()}
    assert released([Withhold(layers=("1", "3.bias"))], after, before, turn()) == {}
    now = after.state_dict()
    for name in ("1.weight", "1.bias", "3.bias"):
        assert torch.equal(now[name], before[name])
    assert torch.equal(now["3.weight"], trained["3.weight"])


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_only_named_layers_are_pruned(before, after, turn, scope):
    trained = {name: value.clone() for name, value in after.state_dict().items()}
    released([GradientPruning(rate=0.5, scope=scope, layers=("3",))], after, before, turn())
    now = after.state_dict()
    zeroed = sum(int((now[n] == before[n]).sum()) for n in ("3.weight", "3.bias"))
    assert zeroed == pytest.approx(0.5 * (400 + 10), abs=1)
    assert torch.equal(now["1.weight"], trained["1.weight"])


@pytest.mark.parametrize(
    "defense",
    [Withhold(layers=("fc",)), GradientPruning(layers=("fc",)), UpdateNoise(layers=("fc",))],
)
def test_a_layer_that_is_not_there_is_refused(model, defense):
    facts = TrainingFacts(lr=0.1, steps=1, batch_size=1, examples=1)
    assert "no layer 'fc' with trained parameters; there are: 1, 3" in (
        defense.unsupported(Setting(model, facts, (64,), 10)) or ""
    )
