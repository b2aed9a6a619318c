"""Expectations against rows of scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from fedleak.errors import ScenarioError
from fedleak.measures import SCORES
from fedleak.scenario import load_scenario, load_study
from fedleak.scenario.expectations import Expectation, judge


def rows(
    *values: float, attack: str = "gs", metric: str = "psnr", layer: str | None = None
) -> list[dict[str, Any]]:
    return [
        {
            "cell": attack, "round": 1, "attack": attack, "measure": None, "metric": metric,
            "value": value, "layer": layer, "sample": sample,
        }
        for sample, value in enumerate(values)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("aggregate", "measured"), [("mean", 20.0), ("median", 15.0), ("min", 5.0), ("max", 45.0)]
)
def test_aggregates(aggregate: Any, measured: float) -> None:
    expectation = Expectation(metric="psnr", aggregate=aggregate, comparison=">=", value=0)
    assert judge(expectation, rows(5, 10, 20, 45)).measured == measured


@pytest.mark.parametrize(
    ("comparison", "value", "tolerance", "met"),
    [
        (">=", 20.0, 0.0, True),
        (">=", 20.5, 0.5, True),
        (">=", 20.6, 0.5, False),
        ("<=", 20.0, 0.0, True),
        ("<=", 19.5, 0.5, True),
        ("<=", 19.4, 0.5, False),
        ("==", 20.4, 0.5, True),
        ("==", 19.6, 0.5, True),
        ("==", 20.6, 0.5, False),
        ("==", 20.0, 0.0, True),
    ],
)
def test_comparisons(comparison: Any, value: float, tolerance: float, met: bool) -> None:
    expectation = Expectation(
        metric="psnr", comparison=comparison, value=value, tolerance=tolerance
    )
    assert judge(expectation, rows(20)).met is met


def test_only_the_attack_and_metric_that_are_named_count() -> None:
    scores = rows(10) + rows(90, attack="idlg") + rows(0.5, metric="ssim")
    named = Expectation(metric="psnr", attack="gs", comparison="==", value=10)
    assert judge(named, scores).met
    every = Expectation(metric="psnr", aggregate="mean", comparison="==", value=50)
    assert judge(every, scores).met


def test_a_layer_is_compared_by_itself() -> None:
    scores = rows(10) + rows(3, layer="fc1") + rows(7, layer="fc2")
    assert judge(Expectation(metric="psnr", comparison="==", value=10), scores).met
    named = Expectation(metric="psnr", layer="fc2", comparison="==", value=7)
    assert judge(named, scores).met


def test_two_layers_are_compared_with_each_other() -> None:
    metric = "jacobian-f-norm"
    scores = rows(5.0, 7.0, metric=metric, layer="conv1") + rows(1.5, metric=metric, layer="fc1")
    steeper = Expectation(
        metric="jacobian-f-norm", layer="conv1", minus_layer="fc1", comparison=">=", value=0
    )
    verdict = judge(steeper, scores)
    assert verdict.met and verdict.measured == 6.0 - 1.5
    assert judge(steeper.model_copy(update={"minus_layer": "fc9"}), scores).measured is None
    with pytest.raises(ValidationError, match="minus_layer needs layer"):
        Expectation(metric="psnr", minus_layer="fc1", comparison=">=", value=0)
    with pytest.raises(ValidationError, match="are the same"):
        Expectation(metric="psnr", layer="a", minus_layer="a", comparison=">=", value=0)


def test_every_score_can_be_expected() -> None:
    for score in SCORES:
        Expectation(metric=score.kind_name(), comparison="==", value=1)
    listed = Expectation.model_json_schema()["properties"]["metric"]["anyOf"][0]["enum"]
    assert {score.kind_name() for score in SCORES} < set(listed)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs either value, or over and values"),
        ({"value": 1.0, "over": "seed", "values": {"1": 1.0}}, "needs either value"),
        ({"over": "seed"}, "over and values belong together"),
        ({"value": 1.0, "values": {"1": 1.0}}, "over and values belong together"),
    ],
)
def test_one_value_or_a_table_of_them(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Expectation(metric="psnr", comparison="==", **given)


def test_what_was_not_scored_is_a_miss() -> None:
    expectation = Expectation(metric="psnr", comparison="<=", value=1e9)
    for scores in ([], rows(float("nan")), rows(1, metric="mse")):
        verdict = judge(expectation, scores)
        assert verdict.measured is None
        assert not verdict.met


def test_a_sample_without_a_score_does_not_count() -> None:
    expectation = Expectation(metric="psnr", aggregate="min", comparison="==", value=7)
    assert judge(expectation, rows(float("nan"), 7)).met


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"metric": "psnr", "layer": "fc1"}, "of whole reconstructions and has no layers"),
        ({"metric": "i2f", "attack": "gs"}, "'i2f' is measured, and no attack's"),
    ],
)
def test_fields_that_mean_nothing_to_a_metric_are_refused(
    tiny: Callable[..., dict[str, Any]], given: dict[str, Any], said: str
) -> None:
    expected = {"comparison": ">=", "value": 1.0, **given}
    audit = {"attacks": [{"kind": "gs"}], "measures": [{"kind": "inversion-influence"}]}
    for matrix in ({}, {"matrix": {"client.lr": [0.1, 0.2]}}):
        raw = tiny(audit=audit, expect=[expected], **matrix)
        with pytest.raises(ScenarioError, match=said):
            (load_study if matrix else load_scenario)(raw)


def test_a_measure_stands_once_with_the_same_parameters(
    tiny: Callable[..., dict[str, Any]],
) -> None:
    def measured(**other: Any) -> dict[str, Any]:
        kind = "jacobian-sensitivity"
        return tiny(audit={"measures": [{"kind": kind}, {"kind": kind, **other}]})

    with pytest.raises(ScenarioError, match="twice with the same parameters"):
        load_scenario(measured(samples=8))  # the default, written out
    assert len(load_scenario(measured(samples=3)).audit.measures) == 2
