"""Small models, smooth samples, and observations made by a real optimiser."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.records import Observation, TrainingFacts

Observe = Callable[..., Observation]


@pytest.fixture
def digits() -> tuple[Tensor, Tensor]:
    """The 8 x 8 digits of scikit-learn: ``(1797, 1, 8, 8)`` in [0, 1], and labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    return images, torch.from_numpy(bunch.target).long()


@pytest.fixture
def observe() -> Observe:
    """Train a copy with `torch.optim.SGD` in float32 and keep what travels."""

    def make(
        model: nn.Module, inputs: Tensor, labels: Tensor, facts: TrainingFacts | None = None
    ) -> Observation:
        facts = facts or TrainingFacts(0.1, 1, len(inputs), len(inputs))
        client = copy.deepcopy(model).train(facts.train_mode)
        optimiser = torch.optim.SGD(
            client.parameters(), facts.lr, facts.momentum, weight_decay=facts.weight_decay
        )
        starts = range(0, facts.examples, facts.batch_size)
        for step in range(facts.steps):
            start = starts[step % len(starts)]
            batch = slice(start, min(start + facts.batch_size, facts.examples))
            optimiser.zero_grad()
            functional.cross_entropy(client(inputs[batch]), labels[batch]).backward()
            optimiser.step()
        sent = {name: value.detach().clone() for name, value in model.named_parameters()}
        received = {name: value.detach() for name, value in client.named_parameters()}
        return Observation(
            model=model,
            parameters=sent,
            buffers={name: value.clone() for name, value in model.named_buffers()},
            update={name: (sent[name] - received[name]) / facts.lr for name in sent},
            facts=facts,
            input_shape=tuple(inputs.shape[1:]),
            classes=10,
        )

    return make


@pytest.fixture
def sigmoid_net() -> nn.Module:
    """Convolutions with sigmoid, no pooling: a smooth update map."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, stride=2),
        nn.Sigmoid(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


@pytest.fixture
def psnr() -> Callable[[Tensor, Tensor], Tensor]:
    """Takes reconstructions and originals, returns dB of each sample ``(m,)``."""

    def ratio(reconstructed: Tensor, original: Tensor) -> Tensor:
        return -10 * (reconstructed - original).double().square().flatten(1).mean(1).log10()

    return ratio
