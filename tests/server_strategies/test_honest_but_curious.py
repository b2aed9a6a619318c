"""The honest-but-curious party: everything is kept, nothing is changed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedleak.captures import CaptureStore
from fedleak.errors import QuorumLost
from fedleak.records import TrainingFacts
from server_strategies import Aggregation, HonestButCurious
from server_strategies.roster import Roster

from .conftest import arrays

START = {
    "fc.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "fc.bias": np.zeros(3, dtype=np.float32),
}

# Every aggregation rule that FedLeak offers, with parameters where it needs some.
RULES = {
    "bulyan": {},
    "fedadagrad": {"eta": 0.05},
    "fedadam": {},
    "fedavg": {},
    "fedavgm": {"server_momentum": 0.9},
    "fedmedian": {},
    "fedprox": {"proximal_mu": 0.1},
    "fedtrimmedavg": {"beta": 0.2},
    "fedyogi": {},
    "krum": {},
    "multikrum": {"num_nodes_to_select": 2},
    "qfedavg": {"client_learning_rate": 0.5},
}


def final_model(grid, strategy, rounds=2):
    result = strategy.start(grid=grid, initial_arrays=arrays(**START), num_rounds=rounds)
    return {name: array.numpy() for name, array in result.arrays.items()}


def build(kind):
    return Aggregation(kind=kind, parameters=RULES[kind]).build(evaluate=False)


@pytest.fixture(autouse=True)
def _same_order(monkeypatch):
    # Flower shuffles the nodes it samples, and sums floats in that order.
    monkeypatch.setattr("random.sample", lambda nodes, size: list(nodes)[:size])


@pytest.mark.parametrize("kind", RULES)
def test_the_final_model_is_bit_identical_with_and_without_the_wrapper(grid, tmp_path, kind):
    plain = final_model(grid, build(kind))
    store = CaptureStore(tmp_path)
    wrapped = final_model(grid, HonestButCurious(build(kind), store))
    assert plain.keys() == wrapped.keys() == START.keys()
    for name in plain:
        assert plain[name].tobytes() == wrapped[name].tobytes()
        assert not np.array_equal(plain[name], START[name])  # the rounds did something
    assert store.rounds() == [1, 2]
    assert store.clients(2) == ["client-000", "client-001", "client-002"]


def test_captures_hold_what_was_sent_and_what_came_back(grid, tmp_path):
    store = CaptureStore(tmp_path)
    final_model(grid, HonestButCurious(FedAvg(fraction_evaluate=0.0), store), rounds=1)
    for partition in range(3):
        capture = store.load(1, f"client-{partition:03d}")
        for name, value in START.items():
            np.testing.assert_array_equal(capture.sent[name], value)
            np.testing.assert_array_equal(capture.received[name], value + partition + 1)
        assert capture.facts == TrainingFacts(
            lr=0.5, steps=1, batch_size=2, examples=10 * (partition + 1)
        )


def reply_to(message, content=None, error=None):
    return Message(content if error is None else error, reply_to=message)


def exchange(grid, tmp_path, spoil, *, quorum=0.0, **keywords):
    """One round in which ``spoil`` may replace each client's reply."""
    store = CaptureStore(tmp_path)
    strategy = HonestButCurious(FedAvg(fraction_evaluate=0.0), store, quorum=quorum, **keywords)
    messages = list(strategy.configure_train(1, arrays(**START), ConfigRecord(), grid))
    replies = list(grid.send_and_receive(messages))
    spoilt = [spoil(i, *pair) for i, pair in enumerate(zip(messages, replies, strict=True))]
    aggregated, _ = strategy.aggregate_train(1, [reply for reply in spoilt if reply is not None])
    manifest = store._read_manifest()["rounds"]["1"]
    return store, manifest, aggregated


def changed(reply, message, change, metrics=None):
    """The same reply with its arrays, or its metrics, altered."""
    trained = {name: array.numpy().copy() for name, array in reply.content["arrays"].items()}
    change(trained)
    content = RecordDict(
        {
            "arrays": arrays(**trained),
            "metrics": metrics or reply.content["metrics"],
            "fedleak": reply.content["fedleak"],
        }
    )
    return reply_to(message, content)


def nan(trained):
    trained["fc.weight"][1, 2] = np.nan


def broadcastable(trained):
    trained["fc.bias"] = np.ones(1, dtype=np.float32)


def missing(trained):
    del trained["fc.bias"]


@pytest.mark.parametrize(
    ("change", "metrics", "reason"),
    [
        (nan, None, "fc.weight contains NaN or infinity"),
        (broadcastable, None, "fc.bias has shape (1,), (3,) was sent"),
        (missing, None, "arrays differ from those sent: fc.bias"),
        (lambda _: None, {"num-examples": 0}, "num-examples is 0, a positive number is expected"),
        (lambda _: None, {"num-examples": -5}, "num-examples is -5, a positive number is expected"),
    ],
)
def test_an_unusable_update_is_recorded_and_left_out(grid, tmp_path, change, metrics, reason):
    def spoil(index, message, reply):
        if index != 1:
            return reply
        return changed(reply, message, change, MetricRecord(metrics) if metrics else None)

    store, manifest, aggregated = exchange(grid, tmp_path, spoil)
    assert manifest["rejected"] == {"client-001": reason}
    assert store.clients(1) == ["client-000", "client-002"]
    # 10 examples moved by 1 and 30 by 3.
    expected = START["fc.weight"] + (10 * 1 + 30 * 3) / 40
    np.testing.assert_allclose(aggregated["fc.weight"].numpy(), expected, rtol=1e-6)


def test_a_client_that_fails_or_stays_silent_is_absent(grid, tmp_path):
    def spoil(index, message, reply):
        if index == 0:
            return reply_to(message, error=Error(code=2, reason="out of memory"))
        return None if index == 1 else reply

    roster = Roster({node: index for index, node in enumerate(grid.get_node_ids())})
    store, manifest, _ = exchange(grid, tmp_path, spoil, roster=roster)
    assert manifest["absent"] == ["client-000", "client-001"]
    assert store.clients(1) == ["client-002"]


def test_who_was_not_there_to_be_asked_is_absent_and_counts_for_the_quorum(grid, tmp_path):
    roster = Roster()
    roster.missing = {3, 4, 5, 6}
    with pytest.raises(QuorumLost, match="3 of 7 clients delivered"):
        exchange(grid, tmp_path, lambda index, message, reply: reply, roster=roster, quorum=0.5)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["rounds"]["1"]["absent"] == [f"client-00{n}" for n in (3, 4, 5, 6)]


def test_the_round_is_kept_when_the_quorum_is_lost_and_the_reason_told(grid, tmp_path):
    def spoil(index, message, reply):
        return (
            reply_to(message, error=Error(code=2, reason="Traceback\nMemoryError: no"))
            if index
            else reply
        )

    with pytest.raises(
        QuorumLost, match=r"1 of 3 clients .* 50%; a client failed with MemoryError: no"
    ):
        exchange(grid, tmp_path, spoil, quorum=0.5)
    assert CaptureStore(tmp_path).clients(1) == ["client-000"]


def test_two_clients_under_one_name_are_not_mixed_up(grid, tmp_path):
    def spoil(index, message, reply):
        content = RecordDict(
            {
                "arrays": reply.content["arrays"],
                "metrics": reply.content["metrics"],
                "fedleak": ConfigRecord({"partition-id": 0}),
            }
        )
        return reply_to(message, content)

    store, manifest, _ = exchange(grid, tmp_path, spoil)
    assert store.clients(1) == ["client-000"]
    assert len(manifest["rejected"]) == 2
    assert all(
        "a second update under the name client-000" in r for r in manifest["rejected"].values()
    )


def test_a_client_that_says_nothing_is_known_by_its_node_and_the_servers_facts(grid, tmp_path):
    def spoil(index, message, reply):
        content = RecordDict(
            {"arrays": reply.content["arrays"], "metrics": reply.content["metrics"]}
        )
        return reply_to(message, content)

    disclosed = {"lr": 0.25, "batch_size": 4, "epochs": 3, "momentum": 0.9}
    store, _, _ = exchange(grid, tmp_path, spoil, disclosed=disclosed)
    names = store.clients(1)
    assert names == sorted(f"node-{node}" for node in grid.get_node_ids())
    # 10 examples in batches of 4 are 3 steps an epoch.
    assert store.load(1, names[0]).facts == TrainingFacts(
        lr=0.25, steps=9, batch_size=4, examples=10, momentum=0.9
    )


def test_facts_nobody_disclosed_are_unknown(grid, tmp_path):
    def spoil(index, message, reply):
        content = RecordDict(
            {"arrays": reply.content["arrays"], "metrics": reply.content["metrics"]}
        )
        return reply_to(message, content)

    store, _, _ = exchange(grid, tmp_path, spoil, disclosed={"lr": 0.25})
    assert store.load(1, store.clients(1)[0]).facts is None


@pytest.mark.parametrize("partition", [float("nan"), float("inf"), -3])
def test_nonsense_in_a_disclosure_does_not_stop_the_server(grid, tmp_path, partition):
    def spoil(index, message, reply):
        nonsense = ConfigRecord({"partition-id": partition, "lr": float("nan"), "batch-size": -1})
        content = RecordDict(
            {
                "arrays": reply.content["arrays"],
                "metrics": reply.content["metrics"],
                "fedleak": nonsense,
            }
        )
        return reply_to(message, content)

    store, _, _ = exchange(grid, tmp_path, spoil, disclosed={"lr": 0.5, "steps": 1})
    assert all(name.startswith("node-") for name in store.clients(1))
    assert store.load(1, store.clients(1)[0]).facts is None
