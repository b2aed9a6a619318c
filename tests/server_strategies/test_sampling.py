"""Clients are chosen by partition id and summed in its order."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message
from flwr.serverapp.strategy import FedAvg

from fedleak.errors import QuorumLost
from fedleak.versions import versions
from server_strategies.roster import Roster
from server_strategies.sampling import SampleByPartition

from .conftest import arrays

START = {"w": np.zeros(2, dtype=np.float32)}


def sampler(seed=0, clients=3, per_round=2, patience=5.0, quorum=1.0):
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    return SampleByPartition(
        inner,
        seed=seed,
        clients=clients,
        clients_per_round=per_round,
        roster=Roster(),
        patience=patience,
        quorum=quorum,
    )


def chosen(strategy, grid, round):
    messages = strategy.configure_train(round, arrays(**START), ConfigRecord(), grid)
    return sorted(strategy.roster[message.metadata.dst_node_id] for message in messages)


def relabelled(grid, names):
    """The same clients under other node ids, as in another run."""
    contexts = dict(zip(names, grid._contexts.values(), strict=True))
    for node, context in contexts.items():
        context.node_id = node
    grid._contexts = contexts
    return grid


def test_the_seed_and_the_round_fix_the_choice_whatever_the_node_ids(grid):
    first = [chosen(sampler(), grid, round) for round in range(1, 30)]
    relabelled(grid, [907, 11, 455])
    assert [chosen(sampler(), grid, round) for round in range(1, 30)] == first
    assert {tuple(choice) for choice in first} == {(0, 1), (0, 2), (1, 2)}
    assert [chosen(sampler(seed=1), grid, round) for round in range(1, 30)] != first


def test_replies_are_summed_in_the_order_of_partitions(grid):
    strategy = sampler(per_round=3)
    messages = strategy.configure_train(1, arrays(**START), ConfigRecord(), grid)
    replies = list(grid.send_and_receive(messages))
    seen = []
    strategy.inner.aggregate_train = lambda round, given: (
        seen.append([r.content["fedleak"]["partition-id"] for r in given]),
        (None, None),
    )[1]
    strategy.aggregate_train(1, reversed(replies))
    strategy.aggregate_train(1, replies[1:] + replies[:1])
    assert seen == [[0, 1, 2], [0, 1, 2]]


def test_too_few_nodes_are_named_with_their_number(grid):
    with pytest.raises(
        QuorumLost, match=r"3 of 5 clients connected \(client-003, client-004 missing\) within 0 s"
    ):
        chosen(sampler(clients=5, patience=0.0), grid, 1)


def test_a_node_that_left_is_forgotten(grid):
    strategy = sampler(clients=3, patience=0.0)
    chosen(strategy, grid, 1)
    del grid._contexts[next(iter(grid.get_node_ids()))]
    with pytest.raises(QuorumLost, match="2 of 3 clients connected"):
        chosen(strategy, grid, 2)


def departed(grid, partition):
    """The federation after a client has left it."""
    (node,) = [n for n, c in grid._contexts.items() if c.node_config["partition-id"] == partition]
    return node, grid._contexts.pop(node)


def test_a_quorum_goes_on_without_those_that_left_and_names_them(grid):
    strategy = sampler(per_round=3, quorum=0.5)
    assert chosen(strategy, grid, 1) == [0, 1, 2]
    assert strategy.roster.missing == set()
    departed(grid, 1)
    assert chosen(strategy, grid, 2) == [0, 2]
    assert strategy.roster.missing == {1}
    departed(grid, 0)
    with pytest.raises(QuorumLost, match=r"1 of 3 clients connected \(client-000, client-001"):
        chosen(sampler(per_round=3, quorum=0.5, patience=0.0), grid, 3)


def test_a_client_that_comes_back_has_another_node_and_takes_part_again(grid):
    strategy = sampler(per_round=3, quorum=0.5)
    chosen(strategy, grid, 1)
    _, context = departed(grid, 1)
    chosen(strategy, grid, 2)
    context.node_id = 907
    grid._contexts[907] = context
    assert chosen(strategy, grid, 3) == [0, 1, 2]
    assert strategy.roster[907] == 1
    assert strategy.roster.missing == set()


def test_the_first_round_waits_for_all_while_patience_lasts(grid, monkeypatch):
    node, context = departed(grid, 2)
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            grid._contexts[node] = context

    monkeypatch.setattr("server_strategies.sampling.time.sleep", wait)
    assert chosen(sampler(per_round=3, quorum=0.5), grid, 1) == [0, 1, 2]
    assert len(waits) == 3


def test_a_client_with_another_version_is_refused_and_both_versions_are_named(grid, monkeypatch):
    theirs = {"fedleak": "0.0.9", "flwr": "1.40.0"}
    monkeypatch.setattr("server_strategies.roster.versions", lambda: theirs)
    strategy = sampler(per_round=3, patience=0.0)
    with pytest.raises(QuorumLost) as lost:
        chosen(strategy, grid, 1)
    ours = versions()
    for name in ("fedleak", "flwr"):
        assert f"{name} {ours[name]}, the server has {name} {theirs[name]}" in str(lost.value)
    assert len(strategy.roster.refused) == 3
    assert not strategy.roster


def test_a_client_that_holds_no_partition_of_the_federation_is_refused(grid):
    strategy = sampler(clients=2)
    assert chosen(strategy, grid, 1) == [0, 1]
    assert list(strategy.roster.refused.values()) == [
        "client-002 is none of client-000 to client-001"
    ]
    assert "client-002" not in strategy.roster.as_record()["clients"]


def test_what_a_superlink_says_of_a_dead_node_in_its_own_name_stands_last(grid):
    strategy = sampler(per_round=3)
    messages = list(strategy.configure_train(1, arrays(**START), ConfigRecord(), grid))
    replies = list(grid.send_and_receive(messages[1:]))
    dead = Message(Error(code=5, reason="Node unavailable"), reply_to=messages[0])
    dead.metadata.__dict__["_src_node_id"] = 1
    seen = []
    strategy.inner.aggregate_train = lambda round, given: (seen.extend(given), (None, None))[1]
    strategy.aggregate_train(1, [dead, *replies])
    assert {id(reply) for reply in seen[:2]} == {id(reply) for reply in replies}
    assert seen[2] is dead
