"""A lower bound that holds for what is right and refutes what is wrong."""

from __future__ import annotations

import copy
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from scipy import stats
from torch import nn

from clients.defenses import DpSgd, Turn
from clients.local_round import local_round
from fedleak.errors import MeasureFailed
from fedleak.measures import EmpiricalEpsilon, Evidence
from fedleak.measures.empirical_epsilon import _rates, epsilon_bound, separation_bound
from fedleak.privacy import gaussian_epsilon
from fedleak.records import Dataset, DataSplits, Observation, TrainingFacts

FACTS = TrainingFacts(lr=0.5, steps=3, batch_size=4, examples=20, weight_decay=0.1, momentum=0.9)
DELTA = 0.04


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    train = Dataset(rng.random((40, 1, 4, 4), dtype=np.float32), rng.integers(0, 5, 40), 5)
    return DataSplits(train, train)


def evidence(data, mechanism, claimed, seed=0, delta=DELTA):
    """Of a client that runs one mechanism and claims the noise of another."""
    model = network()
    sent = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def release(truth, seed):
        released = copy.deepcopy(model)
        turn = Turn(
            seed=seed, client=0, round=1, rounds=1, facts=FACTS, fresh=network, state=RecordDict()
        )
        samples = Dataset(truth.inputs, truth.labels, 5)
        batches = [np.arange(len(truth.labels))]
        local_round(released, samples, batches, [mechanism], turn, torch.device("cpu"))
        return {
            name: (sent[name].double() - weight.detach().double()) / FACTS.lr
            for name, weight in released.named_parameters()
        }

    return Evidence(
        observation=Observation(model, sent, {}, sent, FACTS, (1, 4, 4), 5),
        truth=None,
        data=data,
        release=release,
        seed=seed,
        reported={"dp-sgd/noise-multiplier": claimed, "dp-sgd/delta": delta},
    )


def bounds(given, **settings):
    return {v.metric: v.value for v in EmpiricalEpsilon(**settings).measure(given)}


def test_a_correct_mechanism_is_not_refuted_and_faulty_ones_are(data):
    """Each bound is wrong of a correct mechanism with probability 0.01 at most."""
    claimed = gaussian_epsilon(1.0, DELTA)
    right = bounds(evidence(data, DpSgd(clip=0.1), 1.0), trials=1000)
    assert right["claimed-epsilon"] == pytest.approx(claimed)
    assert right["empirical-epsilon"] <= claimed
    # It is a bound worth having: the canary's gradient is as large as the clip norm.
    assert 0 < right["empirical-epsilon-gaussian"] <= claimed
    half = bounds(evidence(data, DpSgd(clip=0.1, noise_multiplier=0.5), 1.0), trials=1000)
    assert half["claimed-epsilon"] == pytest.approx(claimed)
    assert half["empirical-epsilon"] > claimed
    assert half["empirical-epsilon-gaussian"] > claimed
    # The same noise, 1.0 * 0.1, on gradients that are not clipped.
    unclipped = bounds(evidence(data, DpSgd(clip=100.0, noise_multiplier=0.001), 1.0))
    assert unclipped["empirical-epsilon"] > claimed
    assert unclipped["empirical-epsilon-gaussian"] > claimed


@pytest.mark.parametrize("clipping", ["per-layer", "adaptive", "ghost"])
def test_every_clipping_holds_what_it_claims(data, clipping):
    claimed = gaussian_epsilon(1.0, DELTA)
    found = bounds(evidence(data, DpSgd(clipping=clipping, clip=0.1), 1.0), trials=200)
    assert found["empirical-epsilon"] <= claimed
    assert found["empirical-epsilon-gaussian"] <= claimed


def test_the_gaussian_bound_refutes_at_a_small_delta_too(data):
    """Where no number of releases that anybody has would do without supposing anything."""
    given = evidence(data, DpSgd(clip=0.1, noise_multiplier=0.5), 1.0, delta=1e-5)
    found = bounds(given)
    assert found["empirical-epsilon-gaussian"] > found["claimed-epsilon"]
    assert found["empirical-epsilon"] < found["claimed-epsilon"]


def test_without_a_claim_there_is_nothing_to_audit(data):
    given = evidence(data, DpSgd(), 1.0)
    with pytest.raises(MeasureFailed, match="claims no epsilon"):
        bounds(Evidence(given.observation, None, data, given.release, 0))


def test_rates_are_those_of_exact_binomial_intervals():
    rng = np.random.default_rng(1)
    guilty, innocent = rng.normal(1, 1, 40), rng.normal(0, 1, 60)
    levels = np.array([-9.0, 0.5, 9.0])
    least, most = _rates(levels, guilty, innocent, 0.9)
    for level, low, high in zip(levels, least, most, strict=True):
        true, false = int((guilty >= level).sum()), int((innocent >= level).sum())
        exact = stats.binomtest(true, 40).proportion_ci(0.9, "exact")
        assert low == pytest.approx(exact.low)
        assert high == pytest.approx(stats.binomtest(false, 60).proportion_ci(0.9, "exact").high)


@pytest.mark.parametrize("separation", [0.0, 1.0, 2.5])
def test_bounds_hold_as_often_as_they_say(separation):
    """At 80 %, of 400 draws. More than 104 misses have probability 3e-3 at exactly 20 %."""
    delta, rng = 0.01, np.random.default_rng(2)
    epsilon = gaussian_epsilon(separation, delta) if separation else 0.0
    misses = [0, 0]
    for _ in range(400):
        present, absent = rng.normal(separation, 1, 300), rng.normal(0, 1, 300)
        misses[0] += epsilon_bound(present, absent, delta, 0.8) > epsilon
        misses[1] += separation_bound(present, absent, 0.8) > separation
    assert max(misses) <= 104


def test_bounds_of_a_mechanism_that_is_known_in_closed_form():
    """Randomised response tells the truth with probability e / (1 + e): epsilon is 1."""
    rng, n = np.random.default_rng(3), 200_000
    truthful = math.e / (1 + math.e)
    present = (rng.random(n) < truthful).astype(float)
    absent = (rng.random(n) < 1 - truthful).astype(float)
    assert 0.97 < epsilon_bound(present, absent, 0.0, 0.99) < 1.0
    # Told apart as well as normal distributions that are so far apart:
    apart = 2 * NormalDist().inv_cdf(truthful)
    assert apart * 0.97 < separation_bound(present, absent, 0.99) < apart


@pytest.mark.parametrize("trials", [20, 21, 500])
def test_a_reader_is_told_what_so_many_releases_can_show(trials):
    """Of the half that tests a threshold all are told rightly: exact binomial ends."""
    n = trials - trials // 2
    doubt = 0.01 / 2
    most = math.log(doubt ** (1 / n) / (1 - doubt ** (1 / n)))
    measure = EmpiricalEpsilon(trials=trials)
    assert measure.most == pytest.approx(max(most, 0))
    assert f"{measure.most:.3g}, and 0 says that they showed nothing" in measure.note
    # Nothing shows more: not even releases that could not be told apart better.
    rng = np.random.default_rng(4)
    told = epsilon_bound(rng.normal(9, 1, trials), rng.normal(-9, 1, trials), 0.0, 0.99)
    assert told <= measure.most


def test_a_bound_is_zero_where_nothing_can_be_told():
    same = np.ones(100)
    assert epsilon_bound(same, same, 0.0, 0.99) == 0.0
    assert separation_bound(same, same, 0.99) <= 0.0
