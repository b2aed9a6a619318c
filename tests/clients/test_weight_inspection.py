"""What weights look like that are traps, that are honest, and what a client does about it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from clients.defenses import WeightInspection, received
from clients.defenses.weight_inspection import balance, distance, duplicates, negative, one_hot
from fedleak import run
from fedleak.captures import CaptureStore, RunLayout
from fedleak.errors import QuorumLost, RoundRefused
from fedleak.records import Setting, TrainingFacts
from fedleak.scenario import load_scenario
from fedleak.traps import set_trap, trap_rows

SHAPE = (1, 8, 8)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def coins(rows, weights, seed=0):
    return torch.randn(rows, weights, generator=torch.Generator().manual_seed(seed))


def test_exact_balance_is_seen_and_coin_tosses_are_not():
    half = torch.tensor([-1.0, 1.0] * 100).repeat(50, 1)
    least = stats.chi2.ppf(0.001, 50)
    # Each row is off by none, to which half a count is added: 50 * 0.25 / 50.
    assert balance(half) == pytest.approx(1 - 0.25 / least)
    # Ten counts off in each row: 50 * 10.5^2 / 50 is more than coins would give.
    uneven = half.clone()
    uneven[:, :20:2] = 1.0
    assert balance(uneven) == 0
    # Zeros have no sign.
    assert balance(torch.cat([half, torch.zeros(50, 70)], 1)) == balance(half)
    # A few rows may be balanced by chance.
    assert balance(half[:2]) == 0
    assert balance(torch.zeros(3, 4)) == 0


def test_negative_sums_are_counted():
    rows = torch.ones(100, 3)
    assert negative(rows) == 0
    rows[:60] = -1
    assert negative(rows) == 0  # 60 of 100 happens
    rows[:90] = -1
    # The share at which 90 or more of 100 would have been seen with probability 0.001.
    share = (negative(rows) + 1) / 2
    assert stats.binom.sf(89, 100, share) == pytest.approx(0.001, rel=1e-6)
    # Rows of zeros do not count.
    assert negative(torch.cat([rows, torch.zeros(40, 3)])) == negative(rows)


def test_kernels_that_hand_a_channel_on_are_found():
    weight = coins(8, 3 * 9).view(8, 3, 3, 3).clone()
    assert one_hot(weight) == 0
    weight[5] = 0
    weight[5, 1, 1, 1] = 0.7
    assert one_hot(weight) == pytest.approx(1 / 3)
    weight[2] = 0
    weight[2, 1, 0, 2] = 1.0
    assert one_hot(weight) == pytest.approx(1 / 3)
    weight[3] = 0
    weight[3, 2, 0, 2] = 1.0
    assert one_hot(weight) == pytest.approx(2 / 3)
    # Of two groups the second one's first channel is the layer's fourth.
    grouped = coins(8, 3 * 9).view(8, 3, 3, 3).clone()
    grouped[0], grouped[7] = 0, 0
    grouped[0, 0, 1, 1] = grouped[7, 0, 1, 1] = 1.0
    assert one_hot(grouped, groups=2) == pytest.approx(2 / 6)


def test_zeros_at_random_places_are_no_one_hot_kernels():
    """With probability 0.001 each they are; none of 50 with probability 0.95."""
    found = 0
    for seed in range(50):
        rng = torch.Generator().manual_seed(seed)
        kept = torch.rand(32, 1, 5, 5, generator=rng) < 0.08
        found += one_hot(coins(32, 25, seed).view(32, 1, 5, 5) * kept) > 0
    assert found <= 1
    # Weights of size one have no choice.
    assert one_hot(torch.ones(6, 1, 1, 1)) == 0


def test_rows_that_repeat_are_found_up_to_scale(rng):
    rows = coins(20, 30).clone()
    assert duplicates(rows, rng) == 0
    rows[7] = 3.7 * rows[2]
    rows[11] = 0.2 * rows[2]
    rows[19] = -rows[4]
    assert duplicates(rows, rng) == pytest.approx(3 / 20)
    assert duplicates(torch.eye(5), rng) == 0
    assert duplicates(torch.eye(5)[[0, 0, 0]], rng) == 0


def test_distance_is_kolmogorov_smirnovs_less_chance():
    one, other = np.zeros(100, np.float32), np.ones(400, np.float32)
    # Smirnov's limit law at 0.001.
    chance = stats.kstwobign.isf(0.001) * np.sqrt(500 / 40_000)
    assert distance(one, other) == pytest.approx(1 - chance, abs=1e-5)
    assert distance(one, one) == 0


def test_fresh_models_show_no_mark(turn):
    """5 marks of 2 layers in 100 models, each with probability 0.001: mean 1 at most."""
    from .conftest import network

    shown = 0
    for seed in range(100):
        metrics = received([WeightInspection()], network(seed), turn(seed=seed))
        shown += sum(value > 0 for name, value in metrics.items() if not name.endswith("/score"))
    assert shown <= stats.poisson.isf(1e-6, 1)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_trap_shows_its_balance_and_its_negative_rows(model, turn, rng, hidden):
    made = set_trap(
        model, model.state_dict(), True, SHAPE, scaling=0.5, sigma=0.1, rng=rng, hidden=hidden
    )
    model.load_state_dict({**model.state_dict(), **made})
    metrics = received([WeightInspection()], model, turn())
    assert metrics["weight-inspection/balance"] > 0.9
    assert metrics["weight-inspection/negative"] > 0.4
    assert metrics["weight-inspection/score"] == max(metrics.values())


@pytest.mark.parametrize("hidden", [False, True])
def test_a_convolutional_trap_shows_its_kernels(turn, rng, hidden):
    torch.manual_seed(0)

    def net(seed=0):
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 64, 40),
            nn.ReLU(),
            nn.Linear(40, 10),
        )

    import dataclasses

    model = net()
    own = dataclasses.replace(turn(), fresh=net)
    assert received([WeightInspection()], model, own)["weight-inspection/one-hot"] == 0
    made = set_trap(
        model, model.state_dict(), True, SHAPE, scaling=0.5, sigma=0.1, rng=rng, hidden=hidden
    )
    model.load_state_dict({**model.state_dict(), **made})
    assert received([WeightInspection()], model, own)["weight-inspection/one-hot"] == 1


def test_the_last_rounds_weights_are_remembered_per_client(model, turn):
    defenses = [WeightInspection()]

    def last(**whose):
        return received(defenses, model, turn(**whose))["weight-inspection/last"]

    assert last(round=1) == 0
    assert last(round=2) == 0
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(1, 2, 64 * 40).view(40, 64))
    assert last(round=3) > 0.9  # all weights of a layer moved to where none was
    assert last(client=1, round=3) == 0


def test_above_the_threshold_the_round_is_refused_and_not_remembered(model, turn):
    inspection = WeightInspection(threshold=0.5)
    received([inspection], model, turn())
    kept = model[1].weight.detach().clone()
    with torch.no_grad():
        model[1].weight.copy_(trap_rows(40, 64, scaling=0.5, sigma=1, rng=np.random.default_rng()))
    for round in (2, 3):
        with pytest.raises(RoundRefused, match=r"scores 0\.9.*threshold 0\.5: .* of layer '1'"):
            received([inspection], model, turn(round=round))
    with torch.no_grad():
        model[1].weight.copy_(kept)
    assert received([inspection], model, turn(round=4))["weight-inspection/last"] == 0
    with torch.no_grad():
        model[1].bias.fill_(0), model[3].weight.fill_(torch.nan)
    with pytest.raises(RoundRefused, match="not finite"):
        received([WeightInspection()], model, turn(round=5))


def test_a_model_without_rows_to_inspect_is_refused():
    facts = TrainingFacts(lr=0.5, steps=1, batch_size=8, examples=8)
    reason = WeightInspection().unsupported(Setting(nn.Flatten(), facts, SHAPE, 10))
    assert reason == "it inspects dense layers and convolutions; this model has none"


ATTACKED = {
    "name": "attacked",
    "seed": 3,
    "data": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [60]},
    "federation": {"clients": 3, "rounds": 2},
    "client": {"batch_size": 8, "defenses": [{"kind": "weight-inspection", "threshold": 0.8}]},
    "server": {"kind": "trap-weights", "scaling": 0.5, "clients": [1], "rounds": [2]},
}


def test_a_refusal_reaches_the_server_with_its_reason_and_the_rest_go_on(tmp_path):
    place = run(load_scenario(ATTACKED), directory=tmp_path / "run")
    store = CaptureStore(place)
    rounds = json.loads(RunLayout(place).manifest.read_text())["rounds"]
    assert rounds["1"]["refused"] == {}
    assert list(rounds["2"]["refused"]) == ["client-001"]
    assert "above its threshold 0.8" in rounds["2"]["refused"]["client-001"]
    assert rounds["2"]["absent"] == []
    assert store.clients(2) == ["client-000", "client-002"]
    # Each client's own, and the mean of those that were averaged.
    score = store.load(1, "client-001").metrics["weight-inspection/score"]
    assert 0 <= score < 0.8
    assert rounds["2"]["metrics"]["clients/weight-inspection/score"] < 0.8


def test_a_trap_is_reported_where_nothing_is_refused(tmp_path):
    scenario = load_scenario(ATTACKED, ['client.defenses=[{kind="weight-inspection"}]'])
    store = CaptureStore(run(scenario, directory=tmp_path / "run"))
    scores = {
        client: store.load(2, client).metrics["weight-inspection/score"]
        for client in store.clients(2)
    }
    assert scores["client-001"] > 0.9
    assert max(scores["client-000"], scores["client-002"]) < 0.3
    # The client remembers the honest model of the round before.
    last = [store.load(r, "client-001").metrics["weight-inspection/last"] for r in (1, 2)]
    assert last[0] == 0
    assert last[1] > 0.2


def test_when_all_refuse_the_quorum_is_lost(tmp_path):
    scenario = load_scenario(ATTACKED, ["server.clients=[0, 1]"])
    with pytest.raises(QuorumLost, match=r"round 2: 1 of 3 clients .* above its threshold 0\.8"):
        run(scenario, directory=tmp_path / "run")
