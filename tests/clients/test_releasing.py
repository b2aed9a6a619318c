"""Clipping, noise and pruning of the released update, against independent computations."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.utils import prune

from clients.defenses import GradientPruning, UpdateNoise, released
from fedleak.privacy import gaussian_epsilon
from fedleak.records import Setting, TrainingFacts

FACTS = TrainingFacts(lr=0.5, steps=1, batch_size=8, examples=8)


def sent_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def trained(model, seed=5):
    """A copy that training moved somewhere."""
    moved = copy.deepcopy(model)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in moved.parameters():
            weight.sub_(0.01 * torch.randn(weight.shape, generator=rng))
    return moved


def update(model, sent, lr=0.5):
    """(sent - released) / lr, flat, in float64."""
    return torch.cat(
        [
            ((sent[n].double() - w.detach().double()) / lr).flatten()
            for n, w in model.named_parameters()
        ]
    )


@pytest.mark.parametrize(
    "defenses",
    [
        [],
        [UpdateNoise()],
        [UpdateNoise(clip=1e9)],
        [GradientPruning(rate=0.0)],
        [UpdateNoise(clip=1e9), GradientPruning(rate=0.0, scope="model"), UpdateNoise()],
    ],
)
def test_no_noise_no_clipping_and_no_pruning_release_what_was_trained(model, turn, defenses):
    after, sent = trained(model), sent_of(model)
    # Sizes for which received + (trained - received) is not the trained weight again.
    with torch.no_grad():
        after[1].weight[0, 0], sent["1.weight"][0, 0] = 1e-30, 1e8
    before = sent_of(after)
    released(defenses, after, sent, turn())
    for name, value in after.state_dict().items():
        assert value.numpy().tobytes() == before[name].numpy().tobytes()


def test_clipping_scales_the_whole_update_to_the_norm(model, turn):
    after, sent = trained(model), sent_of(model)
    plain = update(after, sent)
    metrics = released([UpdateNoise(clip=0.25)], after, sent, turn())
    # What is told is the norm of what is released, never that of what the data made.
    assert metrics == {"update-noise/norm": pytest.approx(0.25)}
    plain_metrics = released([UpdateNoise()], trained(model), sent_of(model), turn())
    assert plain_metrics == {"update-noise/norm": pytest.approx(float(plain.norm()), rel=1e-12)}
    clipped = update(after, sent)
    assert float(clipped.norm()) == pytest.approx(0.25, rel=1e-5)
    torch.testing.assert_close(clipped, plain * 0.25 / plain.norm(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("distribution", ["gaussian", "laplace"])
def test_noise_has_the_distribution_claimed(turn, distribution):
    """A correct mechanism fails each of three tests with probability 1e-6.

    Of 200,500 draws the variance is known to 1.5 % (gaussian) or 2.5 % (laplace).
    """
    model = nn.Sequential(nn.Linear(400, 500))
    after, sent = trained(model), sent_of(model)
    plain = update(after, sent)
    released([UpdateNoise(scale=3.0, distribution=distribution)], after, sent, turn())
    noise = (update(after, sent) - plain).numpy()
    law = stats.norm(scale=3.0) if distribution == "gaussian" else stats.laplace(scale=3.0)
    assert stats.kstest(noise, law.cdf).pvalue > 1e-6
    # The sample variance of n draws has variance (m4 - s^4) / n; m4 = 3 s^4 or 6 s^4.
    kurtosis = 3 if distribution == "gaussian" else 6
    deviation = law.var() * math.sqrt((kurtosis - 1) / len(noise))
    assert abs(noise.var() - law.var()) < stats.norm.isf(5e-7) * deviation
    assert abs(noise.mean()) < stats.norm.isf(5e-7) * law.std() / math.sqrt(len(noise))


def test_only_the_named_layers_are_clipped_and_noised(model, turn):
    after, sent = trained(model), sent_of(model)
    before = sent_of(after)
    released([UpdateNoise(clip=0.1, scale=1.0, layers=("3", "1.bias"))], after, sent, turn())
    same = {name: torch.equal(value, before[name]) for name, value in after.state_dict().items()}
    assert same == {"1.weight": True, "1.bias": False, "3.weight": False, "3.bias": False}


def test_noise_is_the_clients_and_the_rounds_own_and_repeats(model, turn):
    def noised(*defenses, **whose):
        after, sent = trained(model), sent_of(model)
        released(defenses or [UpdateNoise(scale=1.0)], after, sent, turn(**whose))
        return update(after, sent)

    assert torch.equal(noised(), noised())
    for other in ({"client": 1}, {"round": 2}, {"seed": 2}):
        assert not torch.allclose(noised(), noised(**other))
    # Two of them add two independent draws, not one twice.
    plain = update(trained(model), sent_of(model))
    twice = noised(UpdateNoise(scale=1.0), UpdateNoise(scale=1.0)) - plain
    assert float(twice.var()) == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("scope", ["layer", "model"])
def test_pruning_is_that_of_torch(model, turn, rate, scope):
    after, sent = trained(model), sent_of(model)
    before, plain = sent_of(after), update(after, sent)
    released([GradientPruning(rate=rate, scope=scope)], after, sent, turn())
    oracle = copy.deepcopy(model).double()
    at = 0
    for weight in oracle.parameters():
        weight.data = plain[at : at + weight.numel()].view_as(weight).clone()
        at += weight.numel()
    places = [(m, n) for m in oracle if isinstance(m, nn.Linear) for n in ("weight", "bias")]
    if scope == "layer":
        for module, name in places:
            prune.l1_unstructured(module, name, amount=rate)
    else:
        prune.global_unstructured(places, prune.L1Unstructured, amount=rate)
    kept = torch.cat([getattr(module, f"{name}_mask").flatten() for module, name in places])
    assert 0 < kept.mean() < 1
    for (name, value), mask in zip(
        after.state_dict().items(), kept.split([w.numel() for w in model.parameters()]), strict=True
    ):
        # What is pruned comes back as it was sent, what is kept as it was trained.
        expected = torch.where(mask.view_as(value) > 0, before[name], sent[name])
        assert torch.equal(value, expected)


def test_defenses_act_in_the_order_of_the_list(model, turn):
    def zeros(*defenses):
        after, sent = trained(model), sent_of(model)
        released(defenses, after, sent, turn())
        return float((update(after, sent) == 0).double().mean())

    noise, pruning = UpdateNoise(scale=1.0), GradientPruning(rate=0.5, scope="model")
    assert zeros(noise, pruning) == pytest.approx(0.5)
    assert zeros(pruning, noise) < 0.01


def test_epsilon_composes_over_the_rounds_of_a_client(model, turn):
    defense = UpdateNoise(clip=1.0, scale=4.0, delta=1e-6)

    def epsilon(**whose):
        metrics = released([defense], trained(model), sent_of(model), turn(**whose))
        return metrics["update-noise/epsilon"]

    first = [epsilon(round=round) for round in (1, 5, 6)]
    # Two updates of norm 1 differ by 2 at most; T rounds by 2 sqrt(T).
    assert first == [pytest.approx(gaussian_epsilon(math.sqrt(t) / 2, 1e-6)) for t in (1, 2, 3)]
    assert epsilon(client=1, round=6) == first[0]
    laplace = UpdateNoise(clip=1.0, scale=4.0, distribution="laplace")
    entries = sum(weight.numel() for weight in model.parameters())
    metrics = released([laplace], trained(model), sent_of(model), turn(client=2))
    assert metrics["update-noise/epsilon"] == pytest.approx(math.sqrt(entries) / 2)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"scale": 1.0}, "without `clip`"),
        ({"clip": 1.0}, "without noise"),
        ({"clip": 1.0, "scale": 1.0, "layers": ("1",)}, "'3.weight' and perhaps others"),
    ],
)
def test_without_a_guarantee_none_is_claimed(model, turn, settings, why):
    defense = UpdateNoise(**settings)
    note = defense.note(model, [FACTS])
    assert "no differential privacy guarantee" in note
    assert why in note
    metrics = released([defense], trained(model), sent_of(model), turn())
    assert "update-noise/epsilon" not in metrics


def test_batch_norms_statistics_void_the_guarantee():
    defense = UpdateNoise(clip=1.0, scale=1.0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    assert "'1.running_mean'" in defense.note(model, [FACTS])
    assert "no differential" not in defense.note(model[0], [FACTS])


def test_a_layer_that_does_not_exist_is_refused_with_those_that_do(model):
    def reason(*layers):
        return UpdateNoise(scale=1.0, layers=layers).unsupported(
            Setting(model, FACTS, (1, 8, 8), 10)
        )

    assert reason("1", "3.bias") is None
    assert reason("1", "3.bia") == (
        "no layer '3.bia' with trained parameters; there are: 1, 3. Did you mean '3.bias'?"
    )
    assert "no layer '2'" in reason("2")
