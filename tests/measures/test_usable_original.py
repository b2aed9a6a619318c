"""Usable original information, on attacks whose success is known, and on a real one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy.stats import binom
from torch import nn

from fedleak.attacks import DLG, GS, IDLG
from fedleak.errors import AttackFailed
from fedleak.measures import Evidence, UsableOriginal, Value
from fedleak.measures.intervals import share_interval
from fedleak.models.lenet import LeNetDlg
from fedleak.records import (
    Dataset,
    DataSplits,
    Observation,
    Reconstruction,
    Setting,
    TrainingFacts,
    Truth,
)

R = 40


def truth(samples: int = 1, size: int = 12) -> Truth:
    """Smooth images of high contrast."""
    place = np.linspace(0, 3 * np.pi, size)
    waves = [np.outer(np.sin(place + k), np.cos(place * (k + 1))) for k in range(samples)]
    images = np.stack(waves)[:, None].astype(np.float32) / 2 + 0.5
    return Truth(images, np.arange(samples, dtype=np.int64)[::-1].copy())


class Known(IDLG):
    """Finds the truth in the first starts of each batch of them, noise in others."""

    successes: tuple[int, ...] = (10,)
    """Of each sample: in how many starts it is found."""
    failures: int = 0
    """Starts that fail, the last ones."""

    def unsupported(self, *_: Any) -> None:
        return None

    def reconstruct_each(
        self, observations: Sequence[Observation], seeds: Sequence[int], progress: Any = None
    ) -> Iterator[dict[int, Reconstruction | AttackFailed]]:
        assert self.restarts == 1 and self.labels == "known"
        real = truth(len(self.successes))
        for index, (observation, seed) in enumerate(zip(observations, seeds, strict=True)):
            assert observation.labels is not None
            assert observation.labels.tolist() == sorted(real.labels.tolist())
            generator = torch.Generator().manual_seed(seed)
            images = torch.rand(real.inputs.shape, generator=generator)
            for sample, successes in enumerate(self.successes):
                if index < successes:
                    images[sample] = torch.from_numpy(real.inputs[sample])
            if index >= len(observations) - self.failures:
                yield {index: AttackFailed("as told")}
            else:
                # In another order than the truth's.
                yield {index: Reconstruction(images.flip(0), None, torch.zeros(len(images)))}


def network(size: int = 12) -> nn.Module:
    return LeNetDlg().build((1, size, size), 4)


def evidence(real: Truth, model: nn.Module | None = None) -> Evidence:
    torch.manual_seed(0)
    model = model or network(real.inputs.shape[2])
    loss = nn.functional.cross_entropy(
        model(torch.from_numpy(real.inputs)), torch.from_numpy(real.labels)
    )
    names = [name for name, _ in model.named_parameters()]
    update = dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    count = len(real.labels)
    facts = TrainingFacts(lr=0.1, steps=1, batch_size=count, examples=count)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    shape = real.inputs.shape[1:]
    observation = Observation(model, parameters, {}, update, facts, shape, 4)
    return Evidence(observation, real, None, None, seed=3)


def measured(attacks: Sequence[Any], real: Truth) -> dict[tuple[str, str | None, int], Value]:
    measure = UsableOriginal.model_construct(attacks=tuple(attacks), restarts=R)
    values = list(measure.measure(evidence(real)))
    assert {value.metric for value in values} <= set(UsableOriginal.metrics)
    assert all(value.low <= value.value <= value.high for value in values)
    found = {(value.metric, value.layer, value.sample): value for value in values}
    assert len(found) == len(values)
    return found


@pytest.mark.parametrize("successes", [0, 1, 10, R])
def test_an_attack_of_known_success(successes: int) -> None:
    found = measured([Known(successes=(successes,))], truth())
    sets = {layer for _, layer, _ in found}
    assert sets == {"conv1+conv2", "conv2+conv3", "conv3+fc1", None}
    # Not one of the random images reaches .5, so the prior is the floor, 1/80.
    assert found["guessed-50", None, 0].value == 0
    for layer in sets:
        share = found["reconstructed-50-idlg", layer, 0]
        assert share.value == successes / R
        # The ends by what defines them (Clopper and Pearson), not by the same library call.
        if successes:
            assert binom.sf(successes - 1, R, share.low) == pytest.approx(0.025, abs=1e-6)
        if successes < R:
            assert binom.cdf(successes, R, share.high) == pytest.approx(0.025, abs=1e-6)
        expected = math.log2(max(successes / R, 1 / 80) / (1 / 80))
        for metric in ("usable-original-50", "usable-original-50-idlg", "usable-original-80-idlg"):
            assert found[metric, layer, -1].value == pytest.approx(expected, abs=1e-12)
    assert (found["usable-original-50", None, -1].low > 0) == (successes >= 10)


def test_the_mean_over_samples_and_the_best_of_a_family() -> None:
    real = truth(2)
    found = measured([Known(successes=(R, 2)), Known(successes=(8, 8), failures=4)], real)
    means = [math.log2(80) / 2 + math.log2(4) / 2, math.log2(16)]
    assert max(means) == means[0]
    assert found["usable-original-60", None, -1].value == pytest.approx(means[0])
    # Each true sample has what was matched to it, whatever the order.
    assert [found["reconstructed-60-idlg", None, s].value for s in (0, 1)] == [1.0, 0.05]
    swapped = measured([Known(successes=(8, 8)), Known(successes=(R, 1))], real)
    expected = max(math.log2(80) / 2 + math.log2(2) / 2, math.log2(16))
    assert swapped["usable-original-60", None, -1].value == pytest.approx(expected)


def test_starts_that_fail_have_reached_nothing() -> None:
    found = measured([Known(successes=(R,), failures=30)], truth())
    assert found["reconstructed-80-idlg", None, 0].value == 10 / R


def test_what_can_be_guessed_is_not_told_by_the_update() -> None:
    flat = Truth(np.full((1, 1, 12, 12), 0.5, dtype=np.float32), np.zeros(1, dtype=np.int64))

    class Blind(Known):
        """Grey, like the guess."""

        def reconstruct_each(self, observations: Any, seeds: Any, progress: Any = None) -> Any:
            for index, _ in enumerate(seeds):
                grey = torch.full((1, 1, 12, 12), 0.52)
                yield {index: Reconstruction(grey, None, torch.zeros(1))}

    found = measured([Blind()], flat)
    # Nearly flat images resemble a flat one, and random ones do not: the prior is the better.
    assert found["guessed-50", None, 0].value > 0.9
    assert found["usable-original-50", None, -1].value == pytest.approx(0, abs=0.15)
    assert found["usable-original-50", None, -1].value >= 0


@pytest.mark.parametrize("successes", [0, 3, 12])
def test_intervals_hold_the_share(successes: int) -> None:
    """Whatever the true share, at most 5 % of draws give an interval without it."""
    for share in (0.02, 0.1, 0.37, 0.5, 0.93):
        held = sum(
            binom.pmf(k, 12, share)
            for k in range(13)
            if share_interval(k, 12)[0] <= share <= share_interval(k, 12)[1]
        )
        assert held >= 0.95
    narrow, wide = share_interval(successes, 12), share_interval(successes, 12, 0.999)
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


def test_real_attacks_look_at_their_layers_alone() -> None:
    """iDLG and GS on a LeNet whose first layers tell the image and whose last do not."""
    torch.manual_seed(1)
    model = network()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    measure = UsableOriginal(
        attacks=(IDLG(iterations=100), GS(iterations=5), DLG(iterations=5)), restarts=2
    )
    given = evidence(truth(), model)
    found = {(v.metric, v.layer, v.sample): v.value for v in measure.measure(given)}
    assert found["reconstructed-80-idlg", None, 0] == 1.0
    assert found["usable-original-80", None, -1] == 2.0  # log2 of 2 R
    # What lies outside a set makes no difference to it.
    blind = {
        name: torch.zeros_like(value) if name.startswith("conv1") else value
        for name, value in given.observation.update.items()
    }
    other = Evidence(
        Observation(**{**vars(given.observation), "update": blind}), given.truth, None, None, 3
    )
    again = {(v.metric, v.layer, v.sample): v.value for v in measure.measure(other)}
    for key, value in found.items():
        if key[1] is not None and "conv1" not in key[1]:
            assert again[key] == value
    assert any(again[key] != value for key, value in found.items())


def test_what_is_refused() -> None:
    facts = TrainingFacts(lr=0.1, steps=1, batch_size=1, examples=1)
    model, measure = network(), UsableOriginal()
    assert measure.unsupported(Setting(model, facts, (1, 12, 12), 4, None)) is None
    reason = measure.unsupported(Setting(nn.Linear(7, 4), facts, (7,), 4, None))
    assert reason is not None and "compares images by their SSIM" in reason
    words = Dataset(np.zeros((2, 1, 12, 12)), np.zeros(2, dtype=np.int64), 4, {}, ("a",))
    assert (
        measure.unsupported(Setting(model, facts, (1, 12, 12), 4, DataSplits(words, words)))
        is not None
    )
    many = UsableOriginal(consecutive=5).unsupported(Setting(model, facts, (1, 12, 12), 4, None))
    assert many == "the model has 4 layers with parameters, not 5"


@pytest.mark.parametrize("theirs", [{"restarts": 7}, {"layers": ["fc1.weight"]}])
def test_what_the_measure_sets_is_not_for_its_attacks_to_set(theirs: dict[str, Any]) -> None:
    asked = {"kind": "usable-original", "attacks": [{"kind": "gs", **theirs}]}
    with pytest.raises(ValidationError, match="that is the measure's own"):
        TypeAdapter(UsableOriginal).validate_python(asked)


def test_too_few_restarts_are_told() -> None:
    told = UsableOriginal(restarts=5).note
    assert told is not None and "restarts = 5" in told and "0.80" in told
    assert UsableOriginal(restarts=16).note is not None
    assert UsableOriginal(restarts=17).note is None


def test_the_family_is_of_attacks_with_restarts() -> None:
    read = TypeAdapter(UsableOriginal).validate_python
    asked = {"attacks": [{"kind": "gs", "iterations": 7}, {"kind": "gauss-newton"}]}
    measure = read({"kind": "usable-original", **asked})
    assert measure.attacks[0] == GS(iterations=7)
    assert read(measure.model_dump(mode="json")) == measure
    for attacks in ([{"kind": "analytic"}], []):
        with pytest.raises(ValidationError):
            read({"kind": "usable-original", "attacks": attacks})
