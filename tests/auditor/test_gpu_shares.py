"""How many actors share a GPU, on made-up memory sizes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from fedleak import load_scenario, run
from fedleak.attacks import GS
from fedleak.auditor.auditing import _plan
from fedleak.auditor.gpu_shares import actor_need, gpu_share
from fedleak.auditor.subject import subject_of_scenario
from fedleak.captures import CaptureStore

GIB = 2**30


@pytest.mark.parametrize(
    ("memory", "need", "gpus", "most", "share"),
    [
        (80 * GIB, 10 * GIB, 1, 100, 0.125),  # memory decides
        (80 * GIB, 10 * GIB + 1, 1, 100, 0.1428),  # seven, rounded down
        (80 * GIB, 10 * GIB, 1, 2, 0.5),  # no work or CPU for more
        (80 * GIB, 10 * GIB, 4, 8, 0.5),
        (80 * GIB, 10 * GIB, 4, 9, 0.3333),  # one GPU of the four has three
        (80 * GIB, 10 * GIB, 4, 1, 1.0),
        (80 * GIB, 80 * GIB, 1, 100, 1.0),
        (80 * GIB, 81 * GIB, 1, 100, 1.0),  # its cells say so themselves if it is too small
        (80 * GIB, math.inf, 1, 100, 1.0),
    ],
)
def test_share_of_a_gpu(memory, need, gpus, most, share):
    assert gpu_share(memory, need, gpus, most) == share


def test_shares_of_one_gpu_fit_into_it():
    for actors in range(1, 101):
        share = gpu_share(100.0, 1.0, 1, actors)
        assert round(share * 10_000) * actors <= 10_000
        assert int(1 / share) >= actors


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return CaptureStore(run(load_scenario(SCENARIO), directory=tmp_path_factory.mktemp("r") / "a"))


SCENARIO = {
    "name": "shares",
    "data": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [256]},
    "federation": {"rounds": 1, "clients": 2},
}
PARAMETERS = 64 * 256 + 256 + 256 * 10 + 10


def need(store, **parameters):
    subject = subject_of_scenario(load_scenario(SCENARIO))
    attack = GS(kind="gs", iterations=1, **parameters)
    return actor_need([_plan(store, None, subject, attacks=[attack])], store, subject)


def test_an_actor_needs_its_context_the_model_and_its_candidates(store):
    model = 4 * 4 * PARAMETERS
    alone = need(store, restarts=1, chunk=1) - GIB - model
    # A candidate holds the gradient of all parameters, and what differentiates it, at least.
    assert alone > 2 * 2 * 4 * PARAMETERS
    # Two clients are attacked together, all of their restarts at a time unless told otherwise.
    assert need(store, restarts=8) - GIB - model == pytest.approx(2 * 8 * alone)
    assert need(store, restarts=8, chunk=3) - GIB - model == pytest.approx(3 * alone)


def test_tokens_get_a_whole_gpu(store):
    class Words(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = torch.nn.Linear(64, 256)
            self.fc2 = torch.nn.Linear(256, 10)

        def forward(self, tokens):
            return self.fc2(self.fc1(torch.nn.functional.one_hot(tokens, 64).float()))

    subject = subject_of_scenario(load_scenario(SCENARIO))
    cells = _plan(store, None, subject, attacks=[GS(kind="gs")])
    of_words = dataclasses.replace(subject, model=Words())
    assert actor_need([cells], store, of_words) == math.inf
