"""Sums over groups of clients: what is captured of them, and what is not changed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedleak import audit, run
from fedleak.auditor.observe import observe
from fedleak.auditor.subject import subject_of_scenario
from fedleak.captures import CaptureStore
from fedleak.errors import ScenarioError
from fedleak.records import members_of, sum_name
from fedleak.scenario import load_scenario, prepare
from server_strategies import HonestButCurious
from server_strategies.secure_aggregation import groups_of

from .conftest import arrays

SCENARIO = {
    "name": "summed",
    "seed": 3,
    "data": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [16]},
    "federation": {"clients": 6, "rounds": 2, "evaluate": False},
    "client": {"batch_size": 3},
    "audit": {"attacks": [{"kind": "analytic"}]},
}


def scenario(**tables):
    raw = copy.deepcopy(SCENARIO)
    for name, table in tables.items():
        raw[name] = {**raw.get(name, {}), **table}
    return load_scenario(raw)


def test_names_say_who_is_in_a_sum():
    names = [f"client-{i:03d}" for i in (0, 1, 2, 3, 7, 1200, 1201)]
    assert sum_name(names) == "sum-000-003+007+1200-1201"
    assert members_of("sum-000-003+007+1200-1201") == names
    assert members_of("client-004") == ["client-004"]
    assert members_of(sum_name(["node-17", "node-4"])) == ["node-17", "node-4"]


@pytest.mark.parametrize(("nodes", "size", "sizes"), [
    (6, 2, [2, 2, 2]), (7, 3, [3, 4]), (10, 4, [5, 5]), (5, 5, [5]), (3, 4, [3]), (4, 1, [1] * 4),
])  # fmt: skip
def test_groups_have_so_many_members_at_least(nodes, size, sizes):
    groups = groups_of(list(range(nodes)), size)
    assert [len(group) for group in groups] == sizes
    assert [node for group in groups for node in group] == list(range(nodes))


def test_the_sum_of_single_steps_is_the_gradient_of_the_union(tmp_path):
    summed = scenario(aggregation={"secure_aggregation": 3}, federation={"rounds": 1})
    store = CaptureStore(run(summed, directory=tmp_path / "run"))
    assert store.clients(1) == ["sum-000-002", "sum-003-005"]
    prepared, subject = prepare(summed), subject_of_scenario(summed)
    for first, name in ((0, "sum-000-002"), (3, "sum-003-005")):
        observation = observe(store.load(1, name), subject)
        assert observation.samples == 9
        members = [prepared.truth(first + i, 1) for i in range(3)]
        held = torch.tensor([prepared.facts(first + i, 1).examples for i in range(3)]).double()
        model = prepared.model().double()
        losses = [
            nn.functional.cross_entropy(
                model(torch.from_numpy(t.inputs).double()), torch.from_numpy(t.labels)
            )
            for t in members
        ]
        sum(w * loss for w, loss in zip(held / held.sum(), losses, strict=True)).backward()
        for weight_name, weight in model.named_parameters():
            torch.testing.assert_close(
                observation.update[weight_name].double(), weight.grad, rtol=0, atol=2e-6
            )
        truth = subject.truth(1, name)
        np.testing.assert_array_equal(truth.inputs, np.concatenate([t.inputs for t in members]))
        np.testing.assert_array_equal(truth.labels, np.concatenate([t.labels for t in members]))


def test_the_global_model_is_the_same_and_no_client_is_captured(tmp_path):
    plain = CaptureStore(run(scenario(), directory=tmp_path / "plain"))
    store = CaptureStore(
        run(scenario(aggregation={"secure_aggregation": 2}), directory=tmp_path / "sums")
    )
    assert store.clients(2) == ["sum-000-001", "sum-002-003", "sum-004-005"]
    mine, theirs = store.load(2, "sum-000-001").sent, plain.load(2, "client-000").sent
    assert {n: a.tobytes() for n, a in mine.items()} == {n: a.tobytes() for n, a in theirs.items()}
    assert not list((tmp_path / "sums" / "captures").rglob("client-*"))


def test_audits_attack_the_sum_and_score_it_against_all_its_samples(tmp_path):
    summed = scenario(aggregation={"secure_aggregation": 6}, federation={"rounds": 1})
    place = run(summed, directory=tmp_path / "run")
    rows = audit(place).rows
    assert {row["client"] for row in rows} == {"sum-000-005"}
    scored = [row for row in rows if row["metric"] == "psnr"]
    assert len(scored) == 6 * 3
    # A client's number chooses the sum that it is in.
    again = audit(place, clients=["client-004"]).rows
    assert [row["cell"] for row in again] == [row["cell"] for row in rows]


def test_a_group_that_loses_a_client_is_the_sum_of_the_others(grid, tmp_path):
    store = CaptureStore(tmp_path)
    strategy = HonestButCurious(FedAvg(fraction_evaluate=0.0), store, secure_aggregation=3)
    answer = grid._client_app
    node = 3  # holds partition 1
    grid._client_app = lambda message, context: (
        answer(message, context) if context.node_id != node else 1 / 0
    )
    start = {"w": np.zeros(4, dtype=np.float32)}
    strategy.start(grid=grid, initial_arrays=arrays(**start), num_rounds=1)
    (name,) = store.clients(1)
    assert members_of(name) == ["client-000", "client-002"]
    capture = store.load(1, name)
    # Partition p adds p + 1 and has 10 (p + 1) examples.
    expected = (10 * 1 + 30 * 3) / 40
    np.testing.assert_allclose(capture.received["w"], expected, rtol=1e-6)
    assert (capture.facts.examples, capture.facts.batch_size) == (40, 4)
    assert capture.metrics["train_loss"] == pytest.approx((0.5 + 2.5) / 2)


def test_a_targeted_client_hides_in_its_group_and_costs_the_global_model_the_group(tmp_path):
    trapped = scenario(
        server={"kind": "trap-weights", "scaling": 0.7, "clients": [0], "rounds": [1]},
        aggregation={"secure_aggregation": 2},
    )
    store = CaptureStore(run(trapped, directory=tmp_path / "run"))
    alone = CaptureStore(run(
        scenario(server={"kind": "trap-weights", "scaling": 0.7, "clients": [0, 1], "rounds": [1]}),
        directory=tmp_path / "both",
    ))  # fmt: skip
    # What was sent to the target stands for the group; the other member's update is on top.
    group, target = store.load(1, "sum-000-001"), alone.load(1, "client-000")
    honest = alone.load(1, "client-002")
    for name in group.sent:
        assert group.sent[name].tobytes() == target.sent[name].tobytes()
    assert any((group.sent[n] != honest.sent[n]).any() for n in group.sent)
    # Neither member's update reaches the model: as if both had been targeted.
    after, without = store.load(2, "sum-002-003").sent, alone.load(2, "client-002").sent
    assert all(after[n].tobytes() == without[n].tobytes() for n in after)


@pytest.mark.parametrize(
    ("tables", "path", "said"),
    [
        (
            {"aggregation": {"secure_aggregation": 7}},
            "aggregation.secure_aggregation",
            "groups of 7 clients, but 6 are asked each round",
        ),
        (
            {"aggregation": {"secure_aggregation": 1}},
            "aggregation.secure_aggregation",
            "must be at least 2",
        ),
        (
            {"aggregation": {"secure_aggregation": 2}, "federation": {"engine": "deployment"}},
            "aggregation.secure_aggregation",
            "is simulated",
        ),
        (
            {"aggregation": {"secure_aggregation": 2, "kind": "fedmedian"}},
            "aggregation",
            "fedmedian needs each client's update",
        ),
        (
            {
                "aggregation": {
                    "secure_aggregation": 2,
                    "server_noise": {"clip": 1.0, "noise_multiplier": 1.0},
                }
            },
            "aggregation",
            "server_noise clips each client's update",
        ),
        (
            {
                "aggregation": {"secure_aggregation": 2},
                "server": {"kind": "trap-weights", "tuning": "updates"},
            },
            "server.tuning",
            "'updates' needs each client's update",
        ),
    ],
)
def test_what_sums_do_not_go_with(tables, path, said):
    with pytest.raises(ScenarioError) as caught:
        scenario(**tables)
    (problem,) = caught.value.problems
    assert problem.path == path
    assert said in problem.message


def test_readers_are_told_what_is_simulated():
    (note,) = prepare(scenario(aggregation={"secure_aggregation": 2})).notes
    assert "sums over 2 clients or more" in note
    assert "approximation" not in note
    client = {"client": {"batch_size": 3, "local_steps": 4}}
    (note,) = prepare(scenario(aggregation={"secure_aggregation": 2}, **client)).notes
    assert note.endswith("is an approximation.")
    chosen = {"audit": {"clients": [3]}}
    _, note = prepare(scenario(aggregation={"secure_aggregation": 2}, **chosen)).notes
    assert note.startswith("audit.clients names clients, and each is in a sum with others")


def noised(directory, **noise):
    return CaptureStore(run(scenario(aggregation={"server_noise": noise}), directory=directory))


def test_the_servers_noise_comes_after_the_central_party_has_read(tmp_path):
    plain = CaptureStore(run(scenario(), directory=tmp_path / "plain"))
    store = noised(tmp_path / "noised", clip=1e9, noise_multiplier=6e-9)
    for client in store.clients(1):
        mine, theirs = store.load(1, client), plain.load(1, client)
        assert all(a.tobytes() == theirs.received[n].tobytes() for n, a in mine.received.items())
    model, other = (s.load(2, "client-000").sent for s in (store, plain))
    noise = np.concatenate([(model[n] - other[n]).ravel() for n in model])
    # 1e9 * 6e-9 / 6 clients; of 1210 draws the deviation is known to 2 %.
    assert noise.std() == pytest.approx(1.0, rel=0.1)
    # It is of a named stream: the same again, another in another run.
    again = noised(tmp_path / "again", clip=1e9, noise_multiplier=6e-9)
    assert all(
        a.tobytes() == model[n].tobytes() for n, a in again.load(2, "client-000").sent.items()
    )
    (note,) = prepare(
        scenario(aggregation={"server_noise": {"clip": 1.0, "noise_multiplier": 1.0}})
    ).notes
    assert "before noise is added" in note


def test_the_server_clips_each_clients_change(tmp_path):
    store = noised(tmp_path / "clipped", clip=1e-3, noise_multiplier=0.0)
    first, second = store.load(1, "client-000").sent, store.load(2, "client-000").sent
    change = np.sqrt(sum(((second[n] - first[n]).astype(np.float64) ** 2).sum() for n in first))
    assert 0 < change <= 1e-3 * 1.001
