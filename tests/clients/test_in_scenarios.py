"""Defenses as a scenario names them: refused early, and the same on every engine."""

from __future__ import annotations

import copy
import html

import pytest

from clients.defenses import DEFENSES
from fedleak import audit, report, run
from fedleak.captures import CaptureStore
from fedleak.scenario import load_scenario, prepare

SCENARIO = {
    "name": "defended",
    "seed": 4,
    "data": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [16]},
    "federation": {"clients": 2, "rounds": 2},
    "client": {"batch_size": 8, "local_steps": 2},
}


def defended(*defenses, **tables):
    raw = {**copy.deepcopy(SCENARIO), **tables}
    raw["client"]["defenses"] = list(defenses)
    return load_scenario(raw)


def captured(scenario, directory):
    store = CaptureStore(run(scenario, directory=directory))
    return {
        (round, client): store.load(round, client)
        for round in store.rounds()
        for client in store.clients(round)
    }


def same(mine, theirs):
    assert mine.keys() == theirs.keys()
    return all(
        {n: a.tobytes() for n, a in mine[key].received.items()}
        == {n: a.tobytes() for n, a in theirs[key].received.items()}
        for key in mine
    )


@pytest.mark.parametrize(
    ("path", "defenses", "message"),
    [
        ("client.defenses.0.rate", [{"kind": "gradient-pruning", "rate": 1.0}], "must be below 1"),
        ("client.defenses.0.rate", [{"kind": "gradient-pruning", "rate": -0.1}], "at least 0"),
        ("client.defenses.0.scale", [{"kind": "update-noise", "scale": -1.0}], "at least 0"),
        ("client.defenses.0.clip", [{"kind": "update-noise", "clip": 0.0}], "above 0"),
        ("client.defenses.0.fraction", [{"kind": "top-k", "fraction": 0.0}], "must be above 0"),
        ("client.defenses.0.bits", [{"kind": "quantise", "bits": 1}], "must be at least 2"),
        ("client.defenses.0.kind", [{"kind": "update-nois"}], "Did you mean 'update-noise'?"),
        ("client.defenses.0.rate", [{"kind": "soteria", "rate": 1.0}], "must be below 1"),
        ("client.defenses.0.rate", [{"kind": "soteria", "rate": -0.1}], "at least 0"),
        ("client.defenses.0", [{"kind": "soteria", "rate": 0.4, "features": 3}], "not both"),
        ("client.defenses.0.kind", [{"kind": "server-noise"}], "set elsewhere: [aggregation.serv"),
        ("client.defenses.0.kind", [{"kind": "local-averaging"}], "set elsewhere: [client] local"),
        ("client.defenses", [{"kind": "weight-inspection"}] * 2, "stands there 2 times"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_with_their_place(refused, path, defenses, message):
    assert message in refused(path, defended, *defenses)


def test_single_brackets_are_told_from_double_ones(refused):
    raw = {**SCENARIO, "client": {"defenses": {"kind": "gradient-pruning"}}}
    message = refused("client.defenses", load_scenario, raw)
    assert message == "is a list of tables: write [[client.defenses]], in double brackets"


def test_a_layer_that_matches_nothing_is_refused_before_the_run(refused):
    scenario = defended(
        {"kind": "gradient-pruning"}, {"kind": "update-noise", "scale": 1.0, "layers": ["fc3"]}
    )
    message = refused("client.defenses.1", prepare, scenario)
    assert message.startswith("update-noise is unsupported: no layer 'fc3'")
    assert "there are: fc1, fc2. Did you mean 'fc" in message
    scenario = defended({"kind": "soteria", "layer": "act1"})
    message = refused("client.defenses.0", prepare, scenario)
    assert "no dense layer 'act1' is trained; there are: fc1, fc2." in message


def test_a_delta_that_guarantees_nothing_is_refused(refused):
    noise = {"kind": "update-noise", "clip": 1.0, "scale": 1.0}
    message = refused("client.defenses.0", prepare, defended({**noise, "delta": 0.9}))
    assert "delta must be below 1 / samples" in message
    assert prepare(defended({**noise, "distribution": "laplace", "delta": 0.9}))


def test_layers_may_be_pruned_each_by_its_own_rate():
    pruned = {"kind": "gradient-pruning"}
    assert prepare(defended(pruned | {"layers": ["fc1"]}, pruned | {"layers": ["fc2"]}))


def test_withholding_every_layer_is_told():
    (note,) = prepare(defended(WITHHELD)).notes
    assert "every trained layer" in note
    assert not prepare(defended(WITHHELD | {"layers": ["fc2"]})).notes


WITHHELD = {"kind": "withhold", "layers": ["fc1.weight", "fc1.bias", "fc2"]}


@pytest.mark.parametrize(
    "idle",
    [
        {"kind": "dropout", "rate": 0.0},
        {"kind": "top-k", "fraction": 1.0},
        {"kind": "gradient-pruning", "rate": 0.0},
        {"kind": "soteria", "rate": 0.0},
        {"kind": "soteria", "features": 0},
    ],
)
def test_a_reader_is_told_of_settings_that_change_nothing(idle):
    (note,) = prepare(defended(idle)).notes
    assert "changes nothing" in note


def test_a_reader_is_told_what_noise_guarantees():
    (note,) = prepare(defended({"kind": "update-noise", "scale": 1.0})).notes
    assert "no differential privacy guarantee" in note
    assert prepare(defended({"kind": "gradient-pruning"})).notes == ()


def test_the_report_tells_what_noise_guarantees(tmp_path):
    noise = {"kind": "update-noise", "clip": 1.0, "scale": 1.0}
    scenario = defended(noise, audit={"attacks": [{"kind": "analytic"}]})
    directory = run(scenario, directory=tmp_path / "run")
    audit(directory)
    (note,) = prepare(scenario).notes
    assert "who has the seed can take it off" in note
    assert note in html.unescape(report(directory).read_text())


def test_defenses_that_do_nothing_leave_a_run_bit_for_bit(tmp_path):
    plain = captured(defended(), tmp_path / "plain")
    idle = defended(
        {"kind": "weight-inspection"},
        {"kind": "update-noise", "clip": 1e9},
        {"kind": "gradient-pruning", "rate": 0.0},
        {"kind": "top-k", "fraction": 1.0},
        {"kind": "soteria", "rate": 0.0},
    )
    assert same(captured(idle, tmp_path / "idle"), plain)
    undropped = defended({"kind": "dropout", "rate": 0.0})
    assert same(captured(undropped, tmp_path / "undropped"), plain)
    idle = {"kind": "dp-sgd", "clipping": "none", "noise_multiplier": 0.0, "sampling": "shuffle"}
    assert same(captured(defended(idle), tmp_path / "none"), plain)
    noised = captured(defended({"kind": "update-noise", "scale": 0.1}), tmp_path / "noised")
    assert not same(noised, plain)


def test_only_one_defense_makes_gradients_anew(refused):
    text = refused("client.defenses", defended, {"kind": "dp-sgd"}, {"kind": "soteria"})
    assert text.startswith("dp-sgd and soteria each make gradients")


def test_what_runs_the_model_again_does_not_go_with_masks(refused):
    message = refused("client.defenses", defended, {"kind": "dropout"}, {"kind": "soteria"})
    assert message.startswith("'soteria' runs the model again in each step, where 'dropout' draws")


TOGETHER = (
    {"kind": "weight-inspection"},
    {"kind": "update-noise", "clip": 1.0, "scale": 0.5},
    {"kind": "gradient-pruning"},
    {"kind": "top-k", "error_feedback": True},
    {"kind": "quantise"},
    {"kind": "withhold", "layers": ["fc2"]},
)
ALONE = (
    {"kind": "soteria"},
    {"kind": "dropout"},
    {"kind": "dp-sgd", "clipping": "adaptive", "delta": 1e-4},
)


def test_no_defense_is_left_out():
    # eigen-noise is for a single step: its own tests.
    kinds = {defense.kind_name() for defense in DEFENSES} - {"eigen-noise"}
    assert {defense["kind"] for defense in (*TOGETHER, *ALONE)} == kinds


@pytest.mark.parametrize("alone", ALONE, ids=lambda defense: defense["kind"])
def test_captures_and_metrics_are_the_same_on_ray(tmp_path, alone):
    scenario = defended(alone, *TOGETHER)
    mine = captured(scenario, tmp_path / "inline")
    ray = scenario.model_copy(
        update={"federation": scenario.federation.model_copy(update={"engine": "ray"})}
    )
    theirs = captured(ray, tmp_path / "ray")
    assert same(mine, theirs)
    assert all(mine[key].metrics == theirs[key].metrics for key in mine)
    # State stays with its client there too.
    epsilons = [theirs[round, "client-001"].metrics["update-noise/epsilon"] for round in (1, 2)]
    assert epsilons[1] > epsilons[0]


@pytest.mark.parametrize("masked", [False, True])
def test_who_reads_scores_of_held_back_entries_is_told_of_the_mask(masked):
    attack = {"kind": "gs", "mask_zeros": masked}
    notes = prepare(defended({"kind": "gradient-pruning"}, audit={"attacks": [attack]})).notes
    assert any("gradient-pruning: entries of the update come back" in n for n in notes) != masked
