"""A whole federation, on one engine and on another."""

from __future__ import annotations

import json
import logging
import sys

import numpy as np
import pytest
import torch

from clients.app import client_app
from fedleak import run
from fedleak.captures import CaptureStore, RunLayout
from fedleak.errors import QuorumLost, ResourceError, ScenarioError
from fedleak.federation import resources
from fedleak.federation.inline import run_inline
from fedleak.scenario import load_scenario, prepare
from server_strategies.app import server_app

SCENARIO = {
    "name": "small",
    "seed": 7,
    "data": {"kind": "digits"},
    "partition": {"kind": "dirichlet", "alpha": 1.0, "max_samples": 40},
    "model": {"kind": "mlp", "hidden": [16]},
    "federation": {"rounds": 2, "clients": 4, "clients_per_round": 3},
    "client": {"lr": 0.5, "batch_size": 8, "local_epochs": 2, "holdout": 0.25, "momentum": 0.5},
}


def captures_of(directory):
    store = CaptureStore(directory)
    return {
        (round, client): store.load(round, client)
        for round in store.rounds()
        for client in store.clients(round)
    }


def assert_same_captures(one, other):
    assert one.keys() == other.keys()
    for key, capture in one.items():
        assert capture.facts == other[key].facts
        for side in ("sent", "received"):
            mine, theirs = getattr(capture, side), getattr(other[key], side)
            assert {n: a.tobytes() for n, a in mine.items()} == {
                n: a.tobytes() for n, a in theirs.items()
            }


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return run(load_scenario(SCENARIO), runs=tmp_path_factory.mktemp("runs"))


def test_a_run_is_told_and_self_contained(directory):
    layout = RunLayout(directory)
    assert load_scenario(layout.scenario) == load_scenario(SCENARIO)
    assert layout.root.stat().st_mode & 0o077 == 0
    environment = json.loads(layout.environment.read_text())
    assert torch.__version__.startswith(environment["torch"])
    manifest = json.loads(layout.manifest.read_text())["rounds"]
    assert list(manifest) == ["1", "2"]
    metrics = manifest["2"]["metrics"]
    assert 0 <= metrics["accuracy"] <= 1
    assert 0 <= metrics["clients/heldout-accuracy"] <= 1
    assert metrics["clients/train_loss"] > 0


def test_the_model_learns(tmp_path):
    scenario = load_scenario(SCENARIO, ["federation.rounds=6", "federation.clients_per_round=4"])
    accuracy = []
    run(scenario, runs=tmp_path, on_round=lambda _, metrics: accuracy.append(metrics["accuracy"]))
    assert len(accuracy) == 6
    assert accuracy[-1] > 0.6  # ten classes


def test_the_same_seed_gives_the_same_captures(directory, tmp_path):
    again = run(load_scenario(SCENARIO), directory=tmp_path / "again")
    assert_same_captures(captures_of(directory), captures_of(again))


def test_another_seed_gives_others(directory, tmp_path):
    other = run(load_scenario(SCENARIO, ["seed=8"]), runs=tmp_path)
    mine, theirs = captures_of(directory), captures_of(other)
    key = next(iter(mine.keys() & theirs.keys()))
    assert any(
        not np.array_equal(mine[key].sent[name], theirs[key].sent[name]) for name in mine[key].sent
    )


def test_the_ray_engine_gives_the_same_captures(directory, tmp_path):
    other = run(load_scenario(SCENARIO, ["federation.engine=ray"]), runs=tmp_path)
    assert_same_captures(captures_of(directory), captures_of(other))


def test_dropout_and_batch_norm_are_reproducible_too(tmp_path, monkeypatch):
    (tmp_path / "noisy_net.py").write_text(
        "from torch import nn\n"
        "def Net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16),\n"
        "                         nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    scenario = load_scenario({**SCENARIO, "model": {"kind": "noisy_net:Net"}})
    runs = [captures_of(run(scenario, directory=tmp_path / name)) for name in ("a", "b")]
    assert_same_captures(*runs)
    received = next(iter(runs[0].values())).received
    assert int(received["2.num_batches_tracked"]) > 0


def test_flowers_words_go_to_the_log_and_the_terminal_stays_quiet(tmp_path, capfd):
    place = run(load_scenario(SCENARIO, ["federation.rounds=1"]), runs=tmp_path)
    assert capfd.readouterr() == ("", "")
    assert "[ROUND 1/1]" in RunLayout(place).log.read_text()
    print("back", file=sys.stderr)
    assert capfd.readouterr().err == "back\n"
    assert all(
        not isinstance(handler, logging.StreamHandler)
        or handler.stream.name != str(RunLayout(place).log)
        for handler in logging.getLogger("flwr").handlers
    )


def test_a_client_that_raises_is_absent_and_the_rest_go_on(tmp_path, monkeypatch):
    import clients.local_round

    train = clients.local_round.train

    def faulty(model, dataset, batches, *rest):
        if set(batches[0]) <= set(prepared.partitions[2]):
            raise RuntimeError("disk full on the phone")
        return train(model, dataset, batches, *rest)

    scenario = load_scenario(SCENARIO, ["federation.clients_per_round=4"])
    prepared = prepare(scenario)
    monkeypatch.setattr(clients.local_round, "train", faulty)
    place = run(scenario, runs=tmp_path)
    manifest = json.loads(RunLayout(place).manifest.read_text())["rounds"]
    assert [manifest[number]["absent"] for number in ("1", "2")] == [["client-002"]] * 2
    assert "disk full on the phone" in RunLayout(place).log.read_text()


def test_losing_the_quorum_stops_the_run_and_says_why(tmp_path, monkeypatch):
    import clients.local_round

    def broken(*_):
        raise RuntimeError("no power")

    monkeypatch.setattr(clients.local_round, "train", broken)
    told = r"round 1: 0 of 3 clients .* RuntimeError: no power\. .* log: /"
    with pytest.raises(QuorumLost, match=told):
        run(load_scenario(SCENARIO), runs=tmp_path)


def test_an_existing_run_directory_is_left_alone(directory):
    before = sorted(path.name for path in directory.iterdir())
    with pytest.raises(ResourceError, match="exists already"):
        run(load_scenario(SCENARIO), directory=directory)
    assert sorted(path.name for path in directory.iterdir()) == before


def test_nothing_is_written_when_a_scenario_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match="partition"):
        run(load_scenario(SCENARIO, ["federation.clients=2000"]), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to train on")
def test_training_on_a_gpu_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ResourceError, match=r"client\.device is 'cuda', but torch sees no GPU"):
        run(load_scenario(SCENARIO, ["client.device=cuda"]), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("what", ["disk", "memory"])
def test_a_run_that_does_not_fit_is_refused_with_its_size(tmp_path, monkeypatch, what):
    if what == "disk":
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    else:
        monkeypatch.setattr(resources, "_free_memory", lambda: 1000)
    with pytest.raises(ResourceError, match=f"GiB of {what}"):
        run(load_scenario(SCENARIO), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_estimate_of_disk_bounds_what_is_written(directory):
    needed = resources.estimate(prepare(load_scenario(SCENARIO)))
    written = sum(p.stat().st_size for p in (directory / "captures").rglob("*") if p.is_file())
    headers = 1000 * len(list((directory / "captures").rglob("*.safetensors")))
    assert written - headers <= needed.disk <= written


def test_a_place_that_cannot_be_written_is_named():
    with pytest.raises(ResourceError, match="/proc"):
        run(load_scenario(SCENARIO), runs="/proc/fedleak-runs")


def test_state_stays_with_its_client_across_rounds(tmp_path):
    """Flower's Context persists per node; the inline engine keeps it too."""
    from flwr.app import ConfigRecord

    scenario = load_scenario(SCENARIO, ["federation.clients_per_round=4"])
    app = client_app(lambda _: scenario)
    seen = {}

    def counting(message, context):
        record = context.state.config_records.get("count")
        rounds = 1 + (record["rounds"] if record else 0)
        context.state["count"] = ConfigRecord({"rounds": rounds})
        if message.metadata.message_type == "train":
            seen.setdefault(context.node_config["partition-id"], []).append(rounds)
        return app(message, context)

    store = CaptureStore(tmp_path / "state")
    run_inline(server_app(lambda _: scenario, lambda *_: store), counting, 4)
    # Each node is asked who it is once, then trains and evaluates in each round.
    assert seen == {client: [2, 4] for client in range(4)}
