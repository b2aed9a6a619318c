"""Usable latent information, on channels whose information is known in closed form."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor, nn

from fedleak.measures.inference import MEMBERS, Part, information
from fedleak.measures.measure import Evidence
from fedleak.measures.usable_latent import UsableLatent
from fedleak.records import Dataset, DataSplits, Observation, Setting, TrainingFacts, Truth

FACTS = TrainingFacts(lr=0.1, steps=1, batch_size=1, examples=1)


def entropy(share: float) -> float:
    """Of a biased coin, in bits."""
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def gaussian_information(distance: float) -> float:
    """Bits that ``N(+-distance, 1)`` tells of a fair sign: h(mixture) - h(noise)."""

    def surprise(x: float) -> float:
        density = (norm.pdf(x - distance) + norm.pdf(x + distance)) / 2
        return -density * math.log2(density) if density > 0 else 0.0

    mixture, _ = quad(surprise, -12 - distance, 12 + distance, limit=200)
    return float(mixture - math.log2(2 * math.pi * math.e) / 2)


def part(rng: np.random.Generator, count: int, distance: float, noise: int, prior: float) -> Part:
    has = rng.random(count) < prior
    gradients = rng.normal(size=(count, noise + 1))
    gradients[:, 0] += np.where(has, distance, -distance)
    return Part(gradients.astype(np.float32), has)


@pytest.mark.parametrize(("distance", "noise"), [(1.0, 0), (1.0, 5), (0.4, 2)])
def test_a_gaussian_channel(distance: float, noise: int) -> None:
    rng = np.random.default_rng(0)
    parts = [part(rng, count, distance, noise, 0.5) for count in (2000, 1000, 4000)]
    expected = gaussian_information(distance)
    found = information(MEMBERS, *parts, 0.5, seed=1)
    assert set(found) == {"", *MEMBERS}
    for name in ("", "logistic", "mlp"):
        values = found[name]
        deviation = values.std() / math.sqrt(len(values))
        # Held out, no model exceeds the channel but by chance; a good one comes near.
        assert expected - 3 * deviation - 0.03 < values.mean() < expected + 3 * deviation
    assert 0.5 * expected < found["forest"].mean() < expected + 0.03


def test_a_channel_that_says_nothing() -> None:
    rng = np.random.default_rng(0)
    parts = [part(rng, count, 0.0, 50, 0.5) for count in (200, 100, 2000)]
    found = information(MEMBERS, *parts, 0.5, seed=1)
    assert all(values.mean() < 0.01 for values in found.values())
    constant = [replace(each, gradients=np.zeros_like(each.gradients)) for each in parts]
    # Off zero by as much as the kinds of batches are not equally frequent in calibration.
    assert all(abs(v.mean()) < 0.03 for v in information(MEMBERS, *constant, 0.5, 1).values())


def test_calibration_to_noise_is_not_taken_for_information() -> None:
    ignored = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        parts = [part(rng, count, 0.0, 30, 0.5) for count in (80, 40, 40)]
        found = information(("logistic",), *parts, prior=0.5, seed=seed)
        ignored += not found[""].any()
    assert ignored >= 6


def test_entries_that_leap_do_not_drown_the_others() -> None:
    """As rows of classes do that are in batches held out alone."""
    rng = np.random.default_rng(0)
    parts = []
    for count in (400, 200, 2000):
        plain = part(rng, count, 1.0, 40, 0.5)
        leaps = plain.gradients.copy()
        leaps[:, 1:] *= 1e-3
        if count != 400:
            rows = np.arange(count)
            leaps[rows, rng.integers(1, 41, count)] = 1e3
        parts.append(replace(plain, gradients=leaps))
    found = information(("logistic",), *parts, 0.5, seed=1)
    assert found["logistic"].mean() > 0.6 * gaussian_information(1.0)


def data(attributes: Mapping[str, np.ndarray], count: int = 4000) -> DataSplits:
    """Samples that hold their own number."""
    inputs = np.arange(count, dtype=np.float32).reshape(-1, 1)
    dataset = Dataset(inputs, np.zeros(count, dtype=np.int64), 2, dict(attributes))
    return DataSplits(dataset, dataset)


def evidence(
    splits: DataSplits, release: Callable[[Truth, int], Mapping[str, Tensor]], seed: int = 0
) -> Evidence:
    observation = Observation(nn.Identity(), {}, {}, {}, FACTS, (1,), 2)
    return Evidence(observation, None, splits, release, seed)


def measured(measure: UsableLatent, given: Evidence) -> dict[tuple[str, str | None], Any]:
    values = list(measure.measure(given))
    assert {value.metric for value in values} <= set(measure.metrics)
    assert all(v.low <= v.value <= v.high for v in values if v.value or not math.isnan(v.low))
    return {(value.metric, value.layer): value for value in values}


def binary_channel(has: np.ndarray, flips: float) -> Callable[[Truth, int], Mapping[str, Tensor]]:
    """One layer whose gradient is whether any sample has it, flipped at random; one of noise."""

    def release(truth: Truth, seed: int) -> Mapping[str, Tensor]:
        rng = np.random.default_rng(seed)
        told = bool(has[truth.inputs[:, 0].astype(int)].any()) != (rng.random() < flips)
        noise = torch.from_numpy(rng.normal(size=(2, 3)))
        return {"told.weight": torch.full((2,), float(told)), "noise.weight": noise}

    return release


@pytest.mark.parametrize("flips", [0.05, 0.2])
@pytest.mark.parametrize("prior", ["half", "empirical"])
def test_a_binary_channel_through_the_measure(flips: float, prior: str) -> None:
    share = 0.25
    has = np.random.default_rng(3).permutation(np.arange(4000) < share * 4000)
    splits = data({"glasses": np.where(has, "yes", "no")})
    measure = UsableLatent(
        attribute="glasses", batch=2, carriers=1, batches=4000, prior=prior, family=MEMBERS[:2]
    )
    found = measured(measure, evidence(splits, binary_channel(has, flips)))
    # Of the channel: H(output) - H(flips). With forest and regression it is usable in full.
    p = 0.5 if prior == "half" else share
    expected = entropy(p * (1 - flips) + (1 - p) * flips) - entropy(flips)
    for name in ("", "-forest", "-logistic"):
        told = found[f"usable-latent{name}", "told"]
        assert told.value == pytest.approx(expected, abs=0.05)
        assert told.low - 0.03 < expected < told.high + 0.03
    assert abs(found["usable-latent", "noise"].value) < 0.02
    # All layers together tell what the one does.
    assert found["usable-latent", None].value == pytest.approx(expected, abs=0.08)


def test_membership() -> None:
    is_target = np.arange(4000) == 17

    def release(truth: Truth, seed: int) -> Mapping[str, Tensor]:
        assert len(truth.inputs) == 3 and len(np.unique(truth.inputs)) == 3
        return binary_channel(is_target, 0.0)(truth, seed)

    found = measured(UsableLatent(target=17, batch=3), evidence(data({}), release))
    # Calibration leaves a little doubt after 100 batches.
    assert 0.9 < found["usable-latent", "told"].value <= 1


def test_parts_share_no_sample() -> None:
    has = np.arange(400) % 2 == 0
    seen: list[set[int]] = []
    carriers: list[int] = []

    def release(truth: Truth, seed: int) -> Mapping[str, Tensor]:
        numbers = truth.inputs[:, 0].astype(int)
        seen.append(set(numbers.tolist()))
        carriers.append(int(has[numbers].sum()))
        return {"a.weight": torch.randn(3)}

    measure = UsableLatent(attribute="x", value=1, batch=5, carriers=2, batches=80)
    list(measure.measure(evidence(data({"x": has.astype(int)}, 400), release)))
    parts = [set().union(*seen[start:end]) for start, end in ((0, 40), (40, 60), (60, 80))]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert all(len(batch) == 5 for batch in seen)
    assert sorted(carriers) == [0] * 40 + [2] * 40


@pytest.mark.parametrize(
    ("options", "sizes"),
    [({}, (40, 3)), ({"fraction": 0.25}, (10, 1)), ({"entries": 7}, (7, 3))],
)
def test_only_some_entries_are_seen(
    options: dict[str, Any], sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {}
    real = information

    def watch(family: Any, fit: Part, *others: Any) -> Any:
        shapes[fit.gradients.shape[1]] = fit
        return real(family, fit, *others)

    monkeypatch.setattr("fedleak.measures.usable_latent.information", watch)

    def release(truth: Truth, seed: int) -> Mapping[str, Tensor]:
        return {"a.weight": torch.arange(39.0), "a.bias": torch.ones(1), "b.weight": torch.zeros(3)}

    splits = data({"x": np.arange(400) % 2}, 400)
    measure = UsableLatent(attribute="x", batch=1, batches=40, family=("logistic",), **options)
    found = measured(measure, evidence(splits, release))
    assert {layer for _, layer in found} == {"a", "b", None}
    assert list(shapes) == [sizes[0], sizes[1], sum(sizes)]
    # What never changes tells nothing, and an interval of nothing would claim to know that.
    assert found["usable-latent", "b"].value == 0
    assert math.isnan(found["usable-latent", "b"].low)
    # The same entries of every batch.
    assert all((fit.gradients == fit.gradients[0]).all() for fit in shapes.values())


COLUMNS = {
    "gender": np.array(["f", "m"] * 200),
    "age": np.arange(400.0),
    "same": np.full(400, "x"),
    "gaps": np.array([np.nan, 1.0] * 200),
    "empty": np.array(["", "a", "b", "a"] * 100),
    "holes": np.array([None, 1] * 200),
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attribute": "gendr"}, "has no attribute 'gendr'.*Did you mean 'gender'"),
        ({"attribute": "same"}, "is 'x' for all 400 samples"),
        ({"attribute": "gaps"}, "no value for 200 of 400 samples"),
        ({"attribute": "empty"}, "no value for 100 of 400 samples"),
        ({"attribute": "holes"}, "no value for 200 of 400 samples"),
        ({"attribute": "age"}, "400 values; say with 'value' or 'above'"),
        ({"attribute": "gender", "above": 3}, "no number to be above 3"),
        ({"attribute": "gender", "value": "d"}, "no sample is 'd'"),
        ({"attribute": "age", "above": -1}, "all samples are above -1"),
        ({"attribute": "gender", "batch": 51}, "need 51 samples with the attribute.* has 50"),
        ({"attribute": "age", "above": 395, "batch": 2}, "need 2 samples with .* has 1"),
        ({"target": 400}, "no sample 400, only 400"),
        ({"attribute": "gender", "batches": 10**6}, "GiB, more than 4; see less of each layer"),
    ],
)
def test_what_cannot_be_measured(options: dict[str, Any], message: str) -> None:
    splits = data(COLUMNS, 400)
    model = nn.Linear(100, 20)
    reason = UsableLatent(**options).unsupported(Setting(model, FACTS, (1,), 2, splits))
    assert reason is not None
    assert re.search(message, reason), reason


@pytest.mark.parametrize(
    "options",
    [
        {"attribute": "gender"},
        {"attribute": "gender", "value": "f"},
        {"attribute": "age", "above": 150, "carriers": 1},
        {"target": 0},
        {"attribute": "gender", "batches": 10**6, "entries": 2},
    ],
)
def test_what_can(options: dict[str, Any]) -> None:
    splits, model = data(COLUMNS, 400), nn.Linear(100, 20)
    assert UsableLatent(**options).unsupported(Setting(model, FACTS, (1,), 2, splits)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either attribute or target"),
        ({"attribute": "a", "target": 1}, "either attribute or target"),
        ({"target": 1, "above": 2}, "a target has no value"),
        ({"attribute": "a", "above": 2, "value": 3}, "value or above"),
        ({"attribute": "a", "fraction": 0.1, "entries": 3}, "fraction or entries"),
        ({"attribute": "a", "batch": 2, "carriers": 3}, "at most batch"),
        ({"target": 1, "carriers": 2}, "carriers must be 1"),
    ],
)
def test_bad_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        UsableLatent(**options)
