"""Reading studies: the matrix's cells, their seeds, and what is said about wrong ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedleak.errors import ScenarioError
from fedleak.scenario import Study, check_cells, load_study
from fedleak.scenario.matrix import cell_names, label, same, settings_of
from fedleak.scenario.naming import names_of

Tiny = Callable[..., dict[str, Any]]


def problems(raw: Any, *overrides: str) -> dict[str, str]:
    with pytest.raises(ScenarioError) as caught:
        load_study(raw, overrides)
    return {problem.path: problem.message for problem in caught.value.problems}


def names(study: Study) -> list[str]:
    return [cell.name for cell in study.cells]


def test_a_matrix_is_a_product_and_the_first_key_varies_slowest(tiny: Tiny) -> None:
    study = load_study(tiny(matrix={"client.lr": [0.1, 1], "model.hidden": [[8], [9, 9]]}))
    assert study.keys == ("client.lr", "model.hidden")
    assert names(study) == [
        "client.lr=0.1,model.hidden=8",
        "client.lr=0.1,model.hidden=9-9",
        "client.lr=1,model.hidden=8",
        "client.lr=1,model.hidden=9-9",
    ]
    assert [cell.scenario.client.lr for cell in study.cells] == [0.1, 0.1, 1, 1]
    assert study.cells[1].scenario.model.model_dump()["hidden"] == (9, 9)
    assert study.cells[0].scenario.federation.clients == 2, "the rest is the scenario's"


def test_both_spellings_of_a_key_path(tiny: Tiny) -> None:
    quoted = load_study(tiny(matrix={"client.lr": [0.1, 0.2]}))
    nested = load_study(tiny(matrix={"client": {"lr": [0.1, 0.2]}}))
    assert names(quoted) == names(nested) == ["client.lr=0.1", "client.lr=0.2"]


def test_whole_tables_and_places_in_lists(tiny: Tiny) -> None:
    models = [{"kind": "mlp", "hidden": [8]}, {"kind": "mlp", "hidden": [9]}]
    matrix = {"audit.attacks.0.tolerance": [0.2], "model": models, "model.activation": ["tanh"]}
    raw = tiny(matrix=matrix)
    del raw["model"]
    study = load_study(raw)
    assert [cell.scenario.model.model_dump()["hidden"] for cell in study.cells] == [(8,), (9,)]
    assert study.cells[0].scenario.model.model_dump()["activation"] == "tanh"
    assert study.cells[1].scenario.audit.attacks[0].model_dump()["tolerance"] == 0.2
    assert models == [{"kind": "mlp", "hidden": [8]}, {"kind": "mlp", "hidden": [9]}]


def test_several_matrices_add_their_cells(tiny: Tiny) -> None:
    study = load_study(
        tiny(
            matrix=[
                {"data.kind": ["digits"], "client.lr": [0.1, 0.2]},
                {"data.kind": ["mnist-5k"], "client.batch_size": [3]},
            ]
        )
    )
    assert study.keys == ("data.kind", "client.lr", "client.batch_size")
    assert names(study) == [
        "data.kind=digits,client.lr=0.1",
        "data.kind=digits,client.lr=0.2",
        "data.kind=mnist-5k,client.batch_size=3",
    ]


def test_repeats_differ_in_their_seed_only(tiny: Tiny) -> None:
    study = load_study(tiny(matrix={"client.lr": [0.1, 0.2]}, repeats=3, seed=5))
    runs = list(study.runs())
    assert [(run.cell.name, run.repeat) for run in runs[:3]] == [
        ("client.lr=0.1", 0), ("client.lr=0.2", 0), ("client.lr=0.1", 1),
    ]  # fmt: skip
    seeds = [run.scenario.seed for run in runs]
    assert seeds[:2] == [5, 5], "the first repeat is the scenario itself"
    assert seeds[2] == seeds[3] and seeds[4] == seeds[5], "cells are compared on equal draws"
    assert len(set(seeds)) == 3
    again = runs[4].scenario.model_copy(update={"seed": 5})
    assert again == runs[0].scenario


def test_repeats_alone_make_a_study(tiny: Tiny) -> None:
    study = load_study(tiny(repeats=2))
    assert names(study) == ["base"]
    assert len(list(study.runs())) == 2
    assert "neither matrix nor repeats" in problems(tiny())[""]


def test_an_override_may_quote_a_key_as_toml_does(tiny: Tiny) -> None:
    study = load_study(tiny(matrix={"client.lr": [0.1]}), ['matrix."client.lr"=[0.2, 0.3]'])
    assert [cell.settings for cell in study.cells] == [{"client.lr": 0.2}, {"client.lr": 0.3}]


def test_overrides_reach_the_matrix(tiny: Tiny) -> None:
    raw = tiny(matrix={"client.lr": [0.1, 0.2], "seed": [1]})
    study = load_study(raw, ["matrix.client.lr=[3.0]", "repeats=4", "client.batch_size=2"])
    assert names(study) == ["client.lr=3,seed=1"]
    assert study.repeats == 4
    assert study.cells[0].scenario.client.batch_size == 2


@pytest.mark.parametrize(
    ("tables", "path", "said"),
    [
        ({"matrix": {"client.lr": 3}}, "matrix.client.lr", "must be a list, not 3"),
        ({"matrix": {"client.lr": []}}, "matrix.client.lr", "needs at least 1 entry"),
        ({"matrix": 3}, "matrix", "must be a list"),
        ({"matrix": {"client.lr": [1]}, "repeats": 0}, "repeats", "must be at least 1, not 0"),
        ({"join": "seed", "matrix": {"client.lr": [1]}}, "join", "no key of the matrix; there are"),
        (
            {
                "join": "client.lr",
                "matrix": [
                    {"client.lr": [1], "federation.evaluate": [False]},
                    {"client.lr": [1], "client.batch_size": [1, 2]},
                ],
            },
            "join",
            "2 cells with client.lr = 1 and federation.evaluate = true",
        ),
        (
            {"join": "client.lr", "matrix": {"client.lr": [1], "federation.evaluate": [False]}},
            "join",
            "no cell with client.lr = 1 and federation.evaluate = true",
        ),
        ({"matrix": {"name": ["a"]}}, "matrix.name", "cannot vary"),
        ({"matrix": {"client.lr": [1, 1]}}, "matrix", "has the cell client.lr=1 2 times"),
        (
            {"matrix": {"client.lr": list(range(1, 1001)), "seed": list(range(11))}},
            "matrix",
            "makes 11,000 cells; at most 10,000",
        ),
        (
            {"matrix": {"audit.attacks.3.tv": [1]}},
            "matrix.audit.attacks.3.tv",
            "'3' is no position in a list of 1",
        ),
        ({"matrix": {"expect.0.value": [1]}}, "matrix.expect.0.value", "cannot vary"),
        ({"matrix": {"seed.x": [1]}, "seed": 3}, "matrix.seed.x", "'seed' is a value"),
        ({"matrix": {"client.lrr": [1]}}, "client.lrr", "Did you mean 'lr'?"),
        ({"matrix": {"client.lr": [0.1, -1]}}, "client.lr", "above 0, not -1 [cell client.lr=-1]"),
        (
            {"matrix": {"client.batch_size": [1, 2], "client.lr": [0.1, "x"]}},
            "client.lr",
            "[cells client.batch_size=1,client.lr=x, client.batch_size=2,client.lr=x]",
        ),
        (
            {"matrix": {"federation.clients_per_round": [1, 3]}},
            "federation.clients_per_round",
            "federation.clients is 2 [cell federation.clients_per_round=3]",
        ),
    ],
)
def test_single_problems(tiny: Tiny, tables: dict[str, Any], path: str, said: str) -> None:
    found = problems(tiny(**tables))
    assert path in found
    assert said in found[path]


def test_all_problems_of_all_cells_at_once(tiny: Tiny) -> None:
    raw = tiny(
        matrix={"client.lr": [0.1, -1], "model.kind": ["mlp", "mpl"]},
        federation={"clients": 0},
        repeats="x",
    )
    assert set(problems(raw)) == {"repeats", "client.lr", "model.kind", "federation.clients"}
    assert "[cell" not in problems(raw)["federation.clients"], "all cells have it"


def test_what_only_data_and_model_show_is_told_by_cell(tiny: Tiny) -> None:
    study = load_study(tiny(matrix={"model.kind": ["mlp", "lenet"], "client.lr": [1, 2, 3, 4]}))
    with pytest.raises(ScenarioError) as caught:
        check_cells(study)
    (problem,) = caught.value.problems
    assert problem.path == "model.kind"
    assert "needs images of at least 16x16" in problem.message
    assert problem.message.endswith("client.lr=3 and 1 more]")


EXPECT = {"metric": "psnr", "comparison": ">=", "value": 1.0}


def expecting(tiny: Tiny, **more: Any) -> dict[str, Any]:
    matrix = {"data.kind": ["digits", "mnist-5k"], "client.lr": [0.1, 0.2, 0.3]}
    expect = {key: value for key, value in {**EXPECT, **more}.items() if value is not None}
    return tiny(matrix=matrix, expect=[expect])


def test_an_expectation_is_about_the_cells_it_chooses(tiny: Tiny) -> None:
    study = load_study(expecting(tiny, where={"client.lr": 0.2}))
    assert [claim.cells[0] for claim in study.claims] == [
        "data.kind=digits,client.lr=0.2",
        "data.kind=mnist-5k,client.lr=0.2",
    ]
    assert len(load_study(expecting(tiny)).claims) == 6
    assert all(cell.scenario.expect == () for cell in study.cells)


def test_a_published_table_in_one_block(tiny: Tiny) -> None:
    study = load_study(
        expecting(
            tiny,
            value=None,
            over="client.lr",
            values={"0.1": 7.0, "0.30": 9.0},
            where={"data.kind": "digits"},
        )
    )
    assert [(*claim.cells, claim.expectation.value) for claim in study.claims] == [
        ("data.kind=digits,client.lr=0.1", 7.0),
        ("data.kind=digits,client.lr=0.3", 9.0),
    ]


def test_published_values_over_the_rounds_of_a_cell(tiny: Tiny) -> None:
    values = {"1": 7.0, "3": 9.0}
    where = {"client.lr": 0.2, "data.kind": "digits"}
    raw = expecting(tiny, value=None, over="round", values=values, where=where)
    raw["federation"]["rounds"] = 3
    claims = load_study(raw).claims
    assert [(c.expectation.round, c.expectation.value) for c in claims] == [(1, 7.0), (3, 9.0)]
    assert {c.cells for c in claims} == {("data.kind=digits,client.lr=0.2",)}
    raw["federation"]["rounds"] = 2
    assert "there is no round 3" in problems(raw)["expect.0.round"]
    raw["expect"][0]["values"] = {"0": 7.0}
    assert "a round's number, from 1" in problems(raw)["expect.0"]
    raw["expect"][0] |= {"values": {"1": 7.0}, "round": 2}
    assert "not both" in problems(raw)["expect.0"]


def test_one_cell_against_another(tiny: Tiny) -> None:
    study = load_study(expecting(tiny, where={"client.lr": 0.2}, minus={"client.lr": 0.3}))
    assert [(*claim.cells, claim.minus) for claim in study.claims] == [
        ("data.kind=digits,client.lr=0.2", "data.kind=digits,client.lr=0.3"),
        ("data.kind=mnist-5k,client.lr=0.2", "data.kind=mnist-5k,client.lr=0.3"),
    ]


@pytest.mark.parametrize(
    ("more", "path", "said"),
    [
        ({"where": {"client.lrr": 1}}, "expect.0.where", "Did you mean 'client.lr'?"),
        ({"where": {"client.lr": 7}}, "expect.0.where", "no cell of the matrix has client.lr = 7"),
        (
            {"value": None, "over": "client.lr", "values": {"0.1": 1.0, "0.7": 1.0}},
            "expect.0.values.0.7",
            "no cell of the matrix has client.lr = 0.7",
        ),
        ({"minus": {"client.lr": 7}}, "expect.0.minus", "but has client.lr = 7"),
        ({"minus": {"seed": 7}}, "expect.0.minus", "'seed' is no key of the matrix"),
        ({"attack": "gs"}, "expect.0.attack", "'gs' is not among audit.attacks (analytic)"),
        ({"metric": "psnrr"}, "expect.0.metric", "Did you mean 'psnr'?"),
    ],
)
def test_wrong_expectations(tiny: Tiny, more: dict[str, Any], path: str, said: str) -> None:
    found = problems(expecting(tiny, **more))
    assert list(found) == [path]
    assert said in found[path]


def test_an_attack_may_stand_there_in_several_forms(tiny: Tiny) -> None:
    claim = {"metric": "psnr", "comparison": ">=", "value": 1.0}
    raw = tiny(
        repeats=1,
        audit={"attacks": [{"kind": "gs"}, {"kind": "gs", "restarts": 3, "mask_zeros": True}]},
        expect=[{**claim, "attack": "gs restarts=3 mask_zeros=true"}],
    )
    first, second = load_study(raw).cells[0].scenario.audit.attacks
    assert (first, names_of([first, second, second])) == (
        type(first)(), ("gs", *["gs restarts=3 mask_zeros=true"] * 2),
    )  # fmt: skip
    raw["expect"] = [{**claim, "attack": "gs mask_zeros=true"}]
    said = problems(raw)["expect.0.attack"]
    assert "is not among audit.attacks (gs, gs restarts=3 mask_zeros=true)" in said


def test_accuracy_needs_no_attack_but_an_evaluation(tiny: Tiny) -> None:
    raw = expecting(tiny, metric="accuracy")
    raw["audit"] = {}
    assert len(load_study(raw).claims) == 6
    raw["federation"]["evaluate"] = False
    assert "federation.evaluate is false" in problems(raw)["expect.0.metric"]


def test_what_clients_report_is_expected_of_defenses_that_are_there(tiny: Tiny) -> None:
    raw = expecting(tiny, metric="update-noise/epsilon")
    raw["audit"] = {}
    raw["client"] = {"defenses": [{"kind": "update-noise", "clip": 1.0, "scale": 1.0}]}
    assert len(load_study(raw).claims) == 6
    raw["client"]["defenses"] = [{"kind": "top-k"}]
    assert problems(raw)["expect.0.metric"] == (
        "no defense 'update-noise' reports it; client.defenses has: top-k."
    )
    raw["expect"][0]["metric"] = "bytes-sent"
    assert len(load_study(raw).claims) == 6


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, "true"),
        (3, "3"),
        (0.25, "0.25"),
        (1.0, "1"),
        (1e-7, "1e-07"),
        ("uniform", "uniform"),
        ([1, 2], "[1, 2]"),
        ({"scale": 2, "kind": "normal"}, "normal scale=2"),
    ],
)
def test_labels(value: Any, words: str) -> None:
    assert label(value) == words
    assert same(value, value)
    assert same(words, value)


def test_what_is_not_the_same() -> None:
    for wanted, value in [(1, True), (True, 1), ("1", "1.0"), ("x", 1), (2, 1), ("true", 1)]:
        assert not same(wanted, value)
    assert same(1, 1.0)
    assert same("0.40", 0.4)


def test_cell_names_are_safe_in_a_path_and_unique() -> None:
    assert cell_names([{}]) == ["base"]
    assert cell_names([{"data.root": "../a b/é"}]) == ["data.root=..-a-b"]
    long = cell_names([{"data.root": "x" * 300}, {"data.root": "x" * 301}])
    assert max(map(len, long)) < 120
    assert len({*long}) == 2
    assert len({*cell_names([{"data.root": "a b"}, {"data.root": "a-b"}])}) == 2
    assert len({*cell_names([{"data.root": "a b"}, {"data.root": "a b"}])}) == 1


VALUES = st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)
MATRIX = st.dictionaries(st.sampled_from(["a", "b.c", "d"]), VALUES, min_size=1)


@settings(derandomize=True)
@given(st.lists(MATRIX, min_size=1, max_size=3))
def test_every_combination_is_there_once(blocks: list[dict[str, list[int]]]) -> None:
    cells = settings_of(tuple({k: tuple(v) for k, v in b.items()} for b in copy.deepcopy(blocks)))
    sizes = []
    for block in blocks:
        size = 1
        for values in block.values():
            size *= len(values)
        sizes.append(size)
        here = cells[sum(sizes[:-1]) : sum(sizes)]
        assert len({tuple(cell.items()) for cell in here}) == size
        assert all(cell[key] in block[key] for cell in here for key in block)
    assert len(cells) == sum(sizes)
