from __future__ import annotations

import pytest
import torch
from flwr.app import RecordDict
from torch import nn

from clients.defenses import Turn
from fedleak.records import TrainingFacts


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))


@pytest.fixture
def model():
    return network()


@pytest.fixture
def turn():
    """Makes a client's turn; the same client keeps its state."""
    states = {}

    def make(client=0, round=1, lr=0.5, seed=1, rounds=10, **facts):
        return Turn(
            seed=seed,
            client=client,
            round=round,
            rounds=rounds,
            facts=TrainingFacts(**{"lr": lr, "steps": 1, "batch_size": 8, "examples": 8, **facts}),
            fresh=network,
            state=states.setdefault(client, RecordDict()),
        )

    return make
