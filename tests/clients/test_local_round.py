"""What one client does in one round, and where in it defenses act."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from clients.defenses import Defense, WeightInspection
from clients.local_round import local_round
from clients.training import train
from fedleak.records import Dataset, Setting

CPU = torch.device("cpu")
FACTS = {"steps": 2, "batch_size": 4, "lr": 0.5}
BATCHES = [np.arange(4), np.arange(4, 8)]


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    return Dataset(rng.random((8, 1, 8, 8)), rng.integers(0, 10, 8), 10)


class Probe(Defense):
    """Notes where it is called and does what it is told."""

    kind: Literal["probe"] = "probe"
    factor: float = 1.0
    share: float = 0.0

    def unsupported(self, setting: Setting) -> str | None:
        return None

    def receive(self, model, turn):
        said.append(f"{turn.label} receives")
        return {}

    @contextmanager
    def training(self, model, turn):
        said.append(f"{turn.label} begins")

        def dropped(layer, inputs, output):
            return nn.functional.dropout(output, self.share)

        drop = model[1].register_forward_hook(dropped)
        with super().training(model, turn) as step:
            yield step
        drop.remove()
        said.append(f"{turn.label} ends")

    def step(self, model, inputs, labels, turn):
        said.append(f"{turn.label} steps")
        expected = copy.deepcopy(model)
        loss = cross_entropy(expected(inputs), labels)
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        first = not any(word.endswith("steps") for word in said[-2:-1])
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            if first:
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-8)
            parameter.grad *= self.factor
        return {"loss": loss.item()}

    def release(self, update, model, turn):
        said.append(f"{turn.label} releases")
        return update, {"released": 1.0}


said: list[str] = []


@pytest.fixture(autouse=True)
def forget():
    said.clear()


def test_defenses_act_before_in_and_after_training_in_their_order(model, dataset, turn):
    metrics = local_round(model, dataset, BATCHES, [Probe(), Probe()], turn(**FACTS), CPU)
    one, other = "probe-0", "probe-1"
    step = [f"{one} steps", f"{other} steps"]
    assert said == [
        f"{one} receives",
        f"{other} receives",
        f"{one} begins",
        f"{other} begins",
        *step,
        *step,
        f"{other} ends",
        f"{one} ends",
        f"{one} releases",
        f"{other} releases",
    ]
    assert metrics.keys() == {
        "train_loss", "probe-0/loss", "probe-0/released", "probe-1/loss", "probe-1/released",
    }  # fmt: skip
    # The last step's values count; train_loss is the mean of both steps.
    assert metrics["probe-0/loss"] != pytest.approx(metrics["train_loss"], rel=1e-4)


def test_what_a_step_makes_of_the_gradient_is_what_the_optimiser_takes(model, dataset, turn):
    """Halving each gradient twice is a quarter of the learning rate, and powers of 2 are exact."""
    plain = copy.deepcopy(model)
    train(plain, dataset, BATCHES, turn(**{**FACTS, "lr": 0.125}).facts, CPU)
    halves = [Probe(factor=0.5), Probe(factor=0.5)]
    local_round(model, dataset, BATCHES, halves, turn(**FACTS), CPU)
    for mine, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("defenses", [[], [WeightInspection()], [Probe()]])
def test_defenses_that_change_no_gradient_leave_training_bit_for_bit(
    model, dataset, turn, defenses
):
    plain = copy.deepcopy(model)
    loss = train(plain, dataset, BATCHES, turn(**FACTS).facts, CPU)
    metrics = local_round(model, dataset, BATCHES, defenses, turn(**FACTS), CPU)
    assert metrics["train_loss"] == loss
    for mine, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, expected)


def test_a_defense_may_change_how_the_model_is_run_while_it_trains(model, dataset, turn):
    """All activations dropped: the dense layer behind them learns its bias alone."""
    before = copy.deepcopy(model)

    class Dropping(Probe):
        def step(self, model, inputs, labels, turn):
            return {}

    local_round(model, dataset, BATCHES, [Dropping(share=1.0)], turn(**FACTS), CPU)
    changed = [
        not torch.equal(mine, was)
        for mine, was in zip(model.parameters(), before.parameters(), strict=True)
    ]
    assert changed == [False, False, False, True]
    assert not model[1]._forward_hooks


def test_other_samples_of_the_same_round_with_other_seeds(model, dataset, turn):
    """What the auditor asks: the facts stay, the samples and the seed differ."""

    def released(samples, seed):
        asked = copy.deepcopy(model)
        local_round(asked, dataset, [samples], [], turn(**FACTS, seed=seed), CPU)
        return torch.cat([w.detach().flatten() for w in asked.parameters()])

    assert torch.equal(released(np.arange(3), 1), released(np.arange(3), 2))
    assert not torch.equal(released(np.arange(3), 1), released(np.arange(5), 1))
