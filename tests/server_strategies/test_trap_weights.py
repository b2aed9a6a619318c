"""The malicious party: who gets which model, and what becomes of the global one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedleak.captures import CaptureStore
from fedleak.errors import Problem
from fedleak.traps import NoTrap
from server_strategies import Served, TrapWeights, TrapWeightsParty
from server_strategies.roster import Roster


@pytest.fixture(autouse=True)
def _same_order(monkeypatch):
    monkeypatch.setattr("random.sample", lambda nodes, size: list(nodes)[:size])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def roster(grid):
    return Roster({node: partition for partition, node in enumerate(grid.get_node_ids())})


def party(store, model, roster, **settings):
    settings = {"scaling": 0.7, "sigma": 0.1, **settings}
    return TrapWeights(
        FedAvg(fraction_evaluate=0.0),
        store,
        model=model,
        input_shape=(1, 4, 4),
        roster=roster,
        **settings,
    )


def run(grid, strategy, model, rounds=1):
    start = ArrayRecord(model.state_dict())
    result = strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds)
    return {name: array.numpy() for name, array in result.arrays.items()}


def is_trap(weight):
    half = weight.shape[1] // 2
    return bool(((weight < 0).sum(1) == half).all() and ((weight > 0).sum(1) == half).all())


def test_only_the_targets_get_the_trap_and_the_others_the_honest_model(
    grid, tmp_path, model, roster
):
    store = CaptureStore(tmp_path)
    run(grid, party(store, model, roster, clients=(1,)), model)
    honest = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for partition in (0, 2):
        sent = store.load(1, f"client-{partition:03d}").sent
        for name, value in honest.items():
            assert sent[name].tobytes() == value.tobytes()
    capture = store.load(1, "client-001")
    assert is_trap(capture.sent["1.weight"])
    assert not capture.sent["1.bias"].any()
    for name in ("3.weight", "3.bias"):
        assert capture.sent[name].tobytes() == honest[name].tobytes()
    # The app adds its partition plus one to whatever it gets.
    for name in honest:
        np.testing.assert_array_equal(capture.received[name], capture.sent[name] + 2)


def test_the_global_model_learns_from_the_others(grid, tmp_path, model, roster):
    after = run(grid, party(CaptureStore(tmp_path), model, roster, clients=(1,)), model)
    for name, tensor in model.state_dict().items():
        # Clients 0 and 2, of 10 and 30 examples, moved by 1 and by 3.
        np.testing.assert_allclose(after[name], tensor.numpy() + 100 / 40, rtol=1e-6)


def test_it_stands_still_while_all_are_targeted(grid, tmp_path, model, roster):
    store = CaptureStore(tmp_path)
    after = run(grid, party(store, model, roster, rounds=(1, 2)), model, rounds=2)
    for name, tensor in model.state_dict().items():
        assert after[name].tobytes() == tensor.numpy().tobytes()
    assert all(is_trap(store.load(2, client).sent["1.weight"]) for client in store.clients(2))
    # Then it is honest.
    store = CaptureStore(tmp_path / "again")
    after = run(grid, party(store, model, roster, rounds=(1,)), model, rounds=2)
    moved = 10 * (1 * 1 + 2 * 2 + 3 * 3) / 60
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(after[name], tensor.numpy() + moved, rtol=1e-6)


def test_a_round_has_one_trap_and_the_seed_fixes_it(grid, tmp_path, model, roster):
    sent = {}
    for run_number, seed in enumerate((1, 1, 2)):
        store = CaptureStore(tmp_path / str(run_number))
        run(grid, party(store, model, roster, seed=seed), model, rounds=2)
        for number in (1, 2):
            of_round = [store.load(number, client).sent["1.weight"] for client in store.clients(1)]
            assert all(np.array_equal(of_round[0], other) for other in of_round)
            sent[run_number, number] = of_round[0]
    assert np.array_equal(sent[0, 1], sent[1, 1]) and np.array_equal(sent[0, 2], sent[1, 2])
    assert not np.array_equal(sent[0, 1], sent[0, 2])
    assert not np.array_equal(sent[0, 1], sent[2, 1])


def test_without_a_roster_a_target_is_known_from_its_first_reply(grid, tmp_path, model):
    store = CaptureStore(tmp_path)
    run(grid, party(store, model, None, clients=(2,)), model, rounds=2)
    traps = {
        (number, client): is_trap(store.load(number, client).sent["1.weight"])
        for number in (1, 2)
        for client in store.clients(number)
    }
    assert [key for key, trap in traps.items() if trap] == [(2, "client-002")]


def test_a_list_of_arrays_is_taken_in_the_order_of_the_state_dict(grid, tmp_path, model, roster):
    store = CaptureStore(tmp_path)
    listed = ArrayRecord([tensor.numpy() for tensor in model.state_dict().values()])
    strategy = party(store, model, roster)
    strategy.start(grid=grid, initial_arrays=listed, num_rounds=1)
    sent = store.load(1, "client-000").sent
    assert set(sent) == {"0", "1", "2", "3"}
    assert is_trap(sent["0"]) and not sent["1"].any()


def test_arrays_of_another_model_are_refused(grid, tmp_path, model, roster):
    strategy = party(CaptureStore(tmp_path), model, roster)
    other = ArrayRecord(nn.Linear(2, 2).state_dict())
    with pytest.raises(NoTrap, match="are not those of the model"):
        list(strategy.configure_train(1, other, ConfigRecord(), grid))


def test_targets_and_rounds_that_there_are_not(model):
    served = Served(model, (1, 4, 4), True, 0, 3, 2, similar=np.zeros((5, 1, 4, 4), np.float32))
    asked = TrapWeightsParty(scaling=0.5, clients=(0, 3, 7), rounds=(1, 9))
    assert list(asked.problems(served)) == [
        Problem("server.clients", "no client 3, 7; there are 3, 0 to 2."),
        Problem("server.rounds", "no round 9; there are 2."),
    ]
    assert not list(TrapWeightsParty(scaling=0.5, clients=(2,), rounds=(2,)).problems(served))


@pytest.mark.parametrize("scaling", [0.0, 1.0, -0.5, 1.5])
def test_a_scaling_factor_out_of_range(scaling):
    with pytest.raises(ValueError, match="scaling"):
        TrapWeightsParty(scaling=scaling)


def test_the_scaling_is_looked_for_in_the_updates(grid, tmp_path, model, roster):
    """The app moves every bias, as if all neurons were active: s must come down."""
    strategy = party(CaptureStore(tmp_path), model, roster, scaling=None)
    first = strategy.search.scaling
    run(grid, strategy, model)
    assert strategy.search.scaling < first


def test_the_scaling_is_found_from_similar_data(tmp_path, model):
    # Dark samples with a few bright pixels activate rows with factors far from 1.
    similar = (np.random.default_rng(0).random((20, 1, 4, 4)) < 0.2).astype(np.float32)
    served = Served(model, (1, 4, 4), True, 0, 3, 2, similar)
    keywords = {"quorum": 0.0, "roster": Roster()}
    tuned = TrapWeightsParty().wrap(FedAvg(), CaptureStore(tmp_path), served, **keywords)
    assert tuned.search is None and 0 < tuned.scaling < 1
    said = TrapWeightsParty(scaling=0.4).wrap(FedAvg(), CaptureStore(tmp_path), served, **keywords)
    assert said.scaling == 0.4
    over = TrapWeightsParty(tuning="updates").wrap(
        FedAvg(), CaptureStore(tmp_path), served, **keywords
    )
    assert over.search is not None
