"""Reading scenarios: what is accepted, and what is said about what is not."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedleak.errors import ScenarioError
from fedleak.models import MODELS
from fedleak.scenario import Scenario, ScenarioFile, load_scenario, load_study, to_toml
from fedleak.scenario.loading import audit_from, is_study, read_document
from fedleak.scenario.schema import Design

Tiny = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[2]

BROKEN = """
nam = "x"
data = "mnist-5k"
[model]
kind = "lenet-dgl"
[federation]
rounds = -1
clients = "many"
[client]
lr = "fast"
batch_sise = 3
local_steps = 2
local_epochs = 3
momentum = nan
[aggregation]
kind = "fedadam"
parameters = { eta = "x" }
[audit]
rounds = [1, "two"]
[[audit.attacks]]
kind = "gs"
iteratons = 5
[[expect]]
metric = "psnr"
attack = "idlg"
comparison = ">="
value = 20
"""


def problems(raw: Any, *overrides: str) -> dict[str, str]:
    with pytest.raises(ScenarioError) as caught:
        load_scenario(raw, overrides)
    assert caught.value.exit_code == 2
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "one problem for each place"
    return found


def test_every_problem_is_reported_at_once() -> None:
    found = problems(tomllib.loads(BROKEN))
    assert set(found) == {
        "nam",
        "data",
        "model.kind",
        "federation.rounds",
        "federation.clients",
        "client.lr",
        "client.batch_sise",
        "client.momentum",
        "client.local_steps",
        "aggregation.parameters.eta",
        "audit.rounds.1",
        "audit.attacks.0.iteratons",
        "expect.0.attack",
    }


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nam", ["unknown key", "name", "seed", "Did you mean 'name'?"]),
        ("data", ["must be a table with a `kind`", "mnist-5k", "'module:name'", "not 'mnist-5k'"]),
        ("model.kind", ["'lenet-dgl' is not one of", "resnet18", "Did you mean 'lenet-dlg'?"]),
        ("federation.rounds", ["must be at least 1, not -1"]),
        ("federation.clients", ["must be a whole number, not 'many'"]),
        ("client.lr", ["must be a number, not 'fast'"]),
        ("client.batch_sise", ["unknown key", "local_epochs", "Did you mean 'batch_size'?"]),
        ("client.momentum", ["must be a finite number, not nan"]),
        ("client.local_steps", ["local_steps or local_epochs, not both"]),
        ("aggregation.parameters.eta", ["must be a number, not 'x'"]),
        ("audit.rounds.1", ["must be a whole number, not 'two'"]),
        ("audit.attacks.0.iteratons", ["unknown key", "restarts", "Did you mean 'iterations'?"]),
        ("expect.0.attack", ["'idlg' is not among audit.attacks (gs)"]),
    ],
)
def test_a_problem_says_what_is_allowed(path: str, said: list[str]) -> None:
    message = problems(tomllib.loads(BROKEN))[path]
    for words in said:
        assert words in message


def test_missing_tables_and_kinds() -> None:
    found = problems({"model": {}})
    assert found["data"] == "is missing and has no default"
    assert found["model.kind"].startswith("is missing; one of: mlp, lenet-dlg")


@pytest.mark.parametrize(
    ("tables", "path", "said"),
    [
        (
            {"federation": {"clients": 2, "clients_per_round": 3}},
            "federation.clients_per_round",
            "3 clients are asked each round, but federation.clients is 2",
        ),
        ({"client": {"local_steps": 2, "local_epochs": 1}}, "client.local_steps", "not both"),
        ({"audit": {"rounds": [3]}}, "audit.rounds", "no round 3; federation.rounds is 2"),
        ({"audit": {"rounds": [0]}}, "audit.rounds", "no round 0"),
        ({"audit": {"rounds": []}}, "audit.rounds", "needs at least 1 entry"),
        ({"audit": {"clients": [2]}}, "audit.clients", "ids go from 0 to 1"),
        ({"audit": {"clients": [-1]}}, "audit.clients", "no client -1"),
        (
            {"audit": {"attacks": [{"kind": "gs"}, {"kind": "gs", "restarts": 1}, {"kind": "gs"}]}},
            "audit.attacks",
            "'gs' stands there 2 times with the same parameters",
        ),
        (
            {"audit": {"measures": [{"kind": "empirical-epsilon"}]}},
            "audit.measures",
            "no client claims that here: add dp-sgd with noise",
        ),
        (
            {
                "audit": {"measures": [{"kind": "empirical-epsilon"}]},
                "client": {"defenses": [{"kind": "dp-sgd", "noise_multiplier": 0.0}]},
            },
            "audit.measures",
            "no client claims that here: add dp-sgd with noise",
        ),
        (
            {
                "audit": {"measures": [{"kind": "empirical-epsilon"}]},
                "client": {"defenses": [{"kind": "dp-sgd"}]},
                "aggregation": {"secure_aggregation": 2},
            },
            "audit.measures",
            "sees sums of several: leave out aggregation.secure_aggregation",
        ),
        (
            {"audit": {}, "expect": [{"metric": "psnr", "comparison": ">=", "value": 1.0}]},
            "expect.0",
            "audit.attacks is empty",
        ),
        (
            {"expect": [{"metric": "psnrr", "comparison": ">=", "value": 1.0}]},
            "expect.0.metric",
            "Did you mean 'psnr'?",
        ),
        (
            {"expect": [{"metric": "accuracy", "comparison": ">=", "value": 1.0}]},
            "expect.0.metric",
            "'accuracy' is compared in studies only: give the scenario a [matrix] or repeats",
        ),
        (
            {
                "expect": [
                    {"metric": "psnr", "comparison": ">=", "value": 1.0, "where": {"seed": 1}}
                ]
            },
            "expect.0.where",
            "only a study has cells to choose from",
        ),
        ({"aggregation": {"kind": "qfedavg"}}, "aggregation", "needs a value for client_learning"),
        ({"name": "../elsewhere"}, "name", "begin with a letter or a digit; not '../elsewhere'"),
        ({"seed": -1}, "seed", "at least 0"),
        ({"client": {"lr": float("inf")}}, "client.lr", "must be a finite number, not inf"),
        (
            {"model": {"kind": "a:B", "parameters": {"x": [float("nan")]}}},
            "model.parameters.x.0",
            "nan",
        ),
        ({"federation": {"rounds": True}}, "federation.rounds", "a whole number, not true"),
        ({"federation": {"rounds": 10**9}}, "federation.rounds", "at most 10000"),
        ({"client": {"lr": 1e30}}, "client.lr", "not 1e+30"),
        ({"data": {"kind": 3}}, "data.kind", "'3' is not one of"),
        (
            {"model": {"kind": "a:B", "parametrs": {"x": 1}}},
            "model.parametrs",
            "unknown key; allowed here: kind, mean, parameters, std. Did you mean 'parameters'?",
        ),
        ({"partition": {"max_sample": 3}}, "partition.max_sample", "Did you mean 'max_samples'?"),
        ({"audit": 3}, "audit", "must be a table, not 3"),
        (
            {"server": {"kind": "trap-weights", "layer": 3}},
            "server.layer",
            "must be text, not 3; as text it is '\"3\"'",
        ),
        ({"audit": {"attacks": ["gs"]}}, "audit.attacks.0", "must be a table with a `kind`"),
    ],
)
def test_single_problems(tiny: Tiny, tables: dict[str, Any], path: str, said: str) -> None:
    found = problems(tiny(**tables))
    assert list(found) == [path]
    assert said in found[path]


def test_no_problem_is_invented_from_a_default_that_stands_in(tiny: Tiny) -> None:
    misspelt = {"cleints": 20, "clients_per_round": 10, "rounds": 2}
    assert list(problems(tiny(federation=misspelt))) == ["federation.cleints"]
    assert list(problems(tiny(federation={"clients": "20", "clients_per_round": 10}))) == [
        "federation.clients"
    ]
    unrelated = {"clients": 2, "clients_per_round": 10, "evalute": True}
    assert set(problems(tiny(federation=unrelated))) == {
        "federation.evalute",
        "federation.clients_per_round",
    }
    expect = [{"metric": "psnr", "attack": "gs", "comparison": ">=", "value": 1.0}]
    assert list(problems(tiny(audit={"attacks": [{"kind": "gss"}]}, expect=expect))) == [
        "audit.attacks.0.kind"
    ]


def test_overrides(tiny: Tiny) -> None:
    scenario = load_scenario(
        tiny(audit={"attacks": [{"kind": "analytic"}, {"kind": "gs"}]}),
        [
            "client.lr=0.5",
            "audit.attacks.1.iterations = 7",
            "name=other",
            "partition={kind='dirichlet', alpha=0.3}",
            "federation.evaluate=false",
        ],
    )
    assert scenario.client.lr == 0.5
    assert scenario.audit.attacks[1].model_dump()["iterations"] == 7
    assert scenario.name == "other"
    assert scenario.partition.model_dump()["alpha"] == 0.3
    assert scenario.federation.evaluate is False


def test_a_partition_is_iid_unless_it_says_otherwise(tiny: Tiny) -> None:
    partition = load_scenario(tiny(partition={"max_samples": 7})).partition
    assert partition.model_dump() == {"kind": "iid", "max_samples": 7}


def test_a_study_is_no_scenario(tiny: Tiny) -> None:
    for more in ({"matrix": {"client.lr": [0.1]}}, {"repeats": 2}):
        assert "load it with `load_study`" in problems(tiny(**more))[""]


def test_overrides_do_not_change_what_they_are_given(tiny: Tiny) -> None:
    raw = tiny()
    load_scenario(raw, ["federation.rounds=1", "audit.attacks.0.tolerance=0.2"])
    assert raw == tiny()


def test_bad_overrides_are_all_reported(tiny: Tiny) -> None:
    with pytest.raises(ScenarioError) as caught:
        load_scenario(
            tiny(), ["foo", "=3", "a..b=1", "name.x=1", "audit.attacks.5.lr=1", "audit.attacks.²=1"]
        )
    messages = [problem.message for problem in caught.value.problems]
    assert {problem.path for problem in caught.value.problems} == {"--set"}
    assert len(messages) == 6
    for message in messages[:3]:
        assert "not of the form key.path=value" in message
    assert "'name' is a value, not a table" in messages[3]
    assert "'5' is no position in a list of 1" in messages[4]


def test_an_override_is_checked_like_the_file(tiny: Tiny) -> None:
    found = problems(tiny(), "client.lrr=1", "federation.rounds='3'", "data.kind=digit")
    assert set(found) == {"client.lrr", "federation.rounds", "data.kind"}
    assert "Did you mean 'digits'?" in found["data.kind"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no scenario file"),
        (b"name = ", "is not valid TOML"),
        (b'name = "\xff"', "is not UTF-8 text"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "scenario.toml"
    if content is not None:
        path.write_bytes(content)
    message = problems(path)[""]
    assert said in message
    assert str(path) in message


def test_a_directory_is_no_scenario(tmp_path: Path) -> None:
    assert "is a directory, not a scenario file" in problems(tmp_path)[""]


def test_relative_data_paths_are_paths(tiny: Tiny) -> None:
    scenario = load_scenario(tiny(data={"kind": "npz", "path": "mine.npz"}))
    assert scenario.data.model_dump()["path"] == Path("mine.npz")
    assert load_scenario(tomllib.loads(to_toml(scenario))) == scenario


TEXT = st.text(st.sampled_from("aZ0 .-_=#[]{}'\"\\\n\t\r\x7fäß€𝄞"), max_size=8)


@settings(derandomize=True, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    lr=st.floats(1e-12, 1e6),
    momentum=st.floats(0, 1, exclude_max=True),
    weight_decay=st.floats(0, 1e3),
    epochs=st.none() | st.integers(1, 10_000),
    rounds=st.integers(1, 10_000),
    source=TEXT,
    value=st.floats(allow_nan=False, allow_infinity=False),
    hidden=st.lists(st.integers(1, 1000), max_size=4),
    parameters=st.dictionaries(
        TEXT,
        st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT | st.just([1, "a"]),
        max_size=3,
    ),
)
def test_the_resolved_scenario_reads_back_as_the_same(
    seed: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    epochs: int | None,
    rounds: int,
    source: str,
    value: float,
    hidden: list[int],
    parameters: dict[str, Any],
) -> None:
    client = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    if epochs is not None:
        client["local_epochs"] = epochs
    scenario = load_scenario(
        {
            "seed": seed,
            "data": {"kind": "some.module:make", "parameters": parameters},
            "model": {"kind": "mlp", "hidden": hidden},
            "federation": {"rounds": rounds},
            "client": client,
            "audit": {"attacks": [{"kind": "gs"}]},
            "expect": [{"metric": "mse", "comparison": "<=", "value": value, "source": source}],
        }
    )
    written = to_toml(scenario)
    again = load_scenario(tomllib.loads(written))
    assert again == scenario
    assert to_toml(again) == written


def test_the_resolved_scenario_states_every_default(tiny: Tiny) -> None:
    written = tomllib.loads(to_toml(load_scenario(tiny())))
    assert written["client"]["lr"] == 0.1
    assert written["client"]["batch_size"] == 1
    assert written["aggregation"]["kind"] == "fedavg"
    assert written["audit"]["attacks"][0]["tolerance"] == 0.01


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").rglob("*.toml")), ids=lambda p: p.stem)
def test_the_scenarios_that_come_along_are_valid(path: Path) -> None:
    document = read_document(path)
    if is_study(document):
        assert load_study(path).cells
    else:
        assert load_scenario(path).audit.tasks


def test_an_audit_table_outside_a_scenario() -> None:
    audit = audit_from({"attacks": [{"kind": "gs"}], "executor": "ray"})
    assert ([attack.kind for attack in audit.attacks], audit.executor) == (["gs"], "ray")
    with pytest.raises(ScenarioError) as caught:
        audit_from({"attacks": [{"kind": "gs", "iteratons": 1}, {"kind": "idgl"}]})
    assert [problem.path for problem in caught.value.problems] == [
        "attacks.0.iteratons",
        "attacks.1.kind",
    ]


def test_the_json_schema_knows_every_table_and_kind() -> None:
    schema = ScenarioFile.model_json_schema()
    assert set(schema["required"]) == {"data", "model"}
    assert set(schema["properties"]) == {*Scenario.model_fields, *Design.model_fields}
    assert schema["additionalProperties"] is False
    definitions = schema["$defs"]
    kinds = {
        definitions[option["$ref"].rpartition("/")[2]]["properties"]["kind"].get("const")
        for option in schema["properties"]["model"]["oneOf"]
    }
    assert kinds == {model.kind_name() for model in MODELS} | {None}
    assert definitions["Client"]["properties"]["lr"]["exclusiveMinimum"] == 0
    for definition in definitions.values():
        for name, field in definition.get("properties", {}).items():
            assert name == "kind" or "description" in field or "$ref" in field, (name, field)
