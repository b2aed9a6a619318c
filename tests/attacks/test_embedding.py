"""Texts: the embedding is found by watching, and what is extracted behind it are tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks import DLG, GS, Analytic
from fedleak.attacks.analytic import extracted_rows
from fedleak.attacks.embedding import behind_embedding, nearest_tokens
from fedleak.measures import extraction
from fedleak.records import Observation, Reconstruction, Setting, TrainingFacts, Truth
from fedleak.traps import set_trap

LENGTH, DIMENSION, TOKENS = 6, 5, 30
Observe = Callable[..., Observation]


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(TOKENS, DIMENSION),
        nn.Flatten(),
        nn.Linear(LENGTH * DIMENSION, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    )


class WithPositions(nn.Module):
    """Adds an embedding of the places, which is not the one that tokens enter."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(LENGTH, DIMENSION)
        self.words = nn.Embedding(TOKENS, DIMENSION)
        self.rest = nn.Sequential(nn.Flatten(), nn.Linear(LENGTH * DIMENSION, 10))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rest(self.words(tokens) + self.places(torch.arange(LENGTH)))


def test_the_embedding_that_tokens_enter_is_found() -> None:
    model = WithPositions()
    behind = behind_embedding(model, (LENGTH,))
    assert behind is not None
    assert (behind.name, behind.input_shape) == ("words", (LENGTH, DIMENSION))
    tokens = torch.randint(0, TOKENS, (3, LENGTH))
    assert torch.equal(behind.model(model.words(tokens)), model(tokens))
    assert isinstance(model.words, nn.Embedding), "the model itself is left as it was"
    images = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert behind_embedding(images, (1, 3, 4)) is None
    assert behind_embedding(nn.Sequential(nn.Linear(LENGTH, 2)), (LENGTH,)) is None


def test_nearest_tokens() -> None:
    weight = torch.rand(TOKENS, DIMENSION, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(0, TOKENS, (4, LENGTH))
    assert torch.equal(nearest_tokens(weight[tokens] + 1e-3, weight), tokens)
    assert nearest_tokens(torch.zeros(0, LENGTH, DIMENSION), weight).shape == (0, LENGTH)


def texts(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randint(0, TOKENS, (count, LENGTH), generator=generator),
        torch.randint(0, 10, (count,), generator=generator),
    )


def test_one_text_is_read_from_an_unmodified_network(observe: Observe) -> None:
    tokens, labels = texts(1)
    found = Analytic().reconstruct(observe(classifier(), tokens, labels), seed=0)
    assert found.inputs.dtype == torch.int64 and torch.equal(found.inputs, tokens)
    assert found.labels is not None and torch.equal(found.labels, labels)


def test_trap_weights_give_texts_away(observe: Observe) -> None:
    """What is found are texts of the batch, and more of them than without the trap."""
    tokens, labels = texts(16)
    facts = TrainingFacts(1.0, 1, 16, 16)
    model = classifier()
    recovered = {}
    for trapped in (False, True):
        if trapped:
            rng = np.random.default_rng(0)
            made = set_trap(
                model, model.state_dict(), True, (LENGTH,), scaling=0.7, sigma=0.01, rng=rng
            )
            assert made["0.weight"].min() >= 0 and made["0.weight"].max() <= 1
            model.load_state_dict({**model.state_dict(), **made})
        found = Analytic().reconstruct(observe(model, tokens, labels, facts), seed=0)
        sure = found.inputs[found.confidence >= 1]
        same = (sure[:, None] == tokens).all(2)
        recovered[trapped] = int(same.any(0).sum())
        if trapped:
            assert same.any(1).float().mean() > 0.9
    assert recovered[True] >= 10 and recovered[True] > recovered[False]


@pytest.mark.parametrize("attack", [GS(labels="known"), DLG()], ids=lambda a: a.kind)
def test_attacks_on_pixels_refuse_texts(attack: Any) -> None:
    told = attack.unsupported(Setting(classifier(), TrainingFacts(1.0, 1, 1, 1), (LENGTH,), 10))
    assert told == "searches for pixels; this model takes tokens"


def test_rows_of_texts_are_compared_as_embeddings(observe: Observe) -> None:
    """The tokens nearest to most mixtures of two texts are those of one of them."""
    tokens, labels = texts(16)
    facts = TrainingFacts(1.0, 1, 16, 16)
    model = classifier()
    rng = np.random.default_rng(0)
    settings = {"scaling": 0.7, "sigma": 0.01, "rng": rng}
    made = set_trap(model, model.state_dict(), True, (LENGTH,), **settings)
    model.load_state_dict({**model.state_dict(), **made})
    rows, alone, neurons = extracted_rows(observe(model, tokens, labels, facts), tokens)
    embedded = model[0](tokens).detach()
    torch.testing.assert_close(alone, embedded)
    # By brute force: neurons that see a single text.
    on = model[2](embedded.flatten(1)) > 0
    assert (len(rows), neurons) == (int(on.any(0).sum()), 200)
    counts = extraction(
        rows, alone, neurons, Reconstruction(tokens, None, torch.ones(16)),
        Truth(tokens.numpy(), labels.numpy()),
    )  # fmt: skip
    lone = int((on.sum(0) == 1).sum())
    assert counts.exact == lone > 10
    like = (nearest_tokens(rows, model[0].weight)[:, None] == tokens).all(2).any(1)
    assert int(like.sum()) > lone, "or there is nothing to tell apart"
