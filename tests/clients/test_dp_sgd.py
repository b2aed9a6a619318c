"""DP-SGD against autograd on single samples, and its epsilon against Google's accountants."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pyarrow.parquet
import pytest
import torch
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from scipy import stats
from torch import nn
from torch.nn.functional import cross_entropy

from clients.app import client_app
from clients.defenses import DpSgd
from clients.local_round import local_round
from clients.per_sample import private_gradient, untrainable
from clients.training import train
from fedleak import audit, run
from fedleak.captures import RunLayout
from fedleak.errors import Problem, ScenarioError
from fedleak.privacy import gaussian_epsilon
from fedleak.records import Dataset, TrainingFacts
from fedleak.scenario import load_scenario, prepare

CPU = torch.device("cpu")
ALL = ["flat", "per-layer", "adaptive", "ghost"]


def convolutions():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(144, 12),
        nn.LayerNorm(12),
        nn.Tanh(),
        nn.Linear(12, 10),
    )


def drawn(samples, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    inputs = torch.from_numpy(rng.random((samples, 1, 8, 8))).to(dtype)
    # Of very different norms, so that some are clipped and some are not.
    return inputs * torch.logspace(-3, 1, samples, dtype=dtype).view(-1, 1, 1, 1), torch.from_numpy(
        rng.integers(0, 10, samples)
    )


def single_gradients(model, inputs, labels):
    """One backward pass for each sample, by parameter."""
    return [
        torch.autograd.grad(cross_entropy(model(x[None]), y[None]), list(model.parameters()))
        for x, y in zip(inputs, labels, strict=True)
    ]


def stepped(model, clipping, inputs, labels, *, clip, noise=0.0, expected=8, seed=0, steps=1):
    """What each of some steps at the same weights makes of the gradient, flat."""
    made = []
    with private_gradient(
        model,
        clipping,
        clip=clip,
        noise_multiplier=noise,
        expected_batch_size=expected,
        unclipped=0.5,
        generator=torch.Generator().manual_seed(seed),
    ) as replace:
        for _ in range(steps):
            model.zero_grad()
            if len(labels):
                cross_entropy(model(inputs), labels).backward()
            replace(inputs, labels)
            made.append(torch.cat([w.grad.flatten() for w in model.parameters()]))
    return made


@pytest.mark.parametrize("clipping", ALL)
def test_clipped_sums_are_those_of_single_samples(clipping):
    model, (inputs, labels) = convolutions().double(), drawn(7)
    singles = single_gradients(model, inputs, labels)
    norms = torch.stack([torch.cat([g.flatten() for g in one]).norm() for one in singles])
    clip = float(norms.median()) * 1.01
    assert 0 < int((norms > clip).sum()) < 7
    (mine,) = stepped(model, clipping, inputs, labels, clip=clip, expected=5)

    def clipped(part, most):
        # Opacus adds 1e-6 to norms that it divides by.
        return part * min(1.0, most / (float(part.norm()) + 1e-6))

    if clipping == "per-layer":
        most = clip / math.sqrt(len(list(model.parameters())))
        parts = [torch.cat([clipped(g, most).flatten() for g in one]) for one in singles]
        assert any(float(g.norm()) > most for one in singles for g in one)
    else:
        parts = [clipped(torch.cat([g.flatten() for g in one]), clip) for one in singles]
    torch.testing.assert_close(mine, sum(parts) / 5, rtol=1e-9, atol=1e-12)
    # Nothing of Opacus is left behind.
    plain = convolutions().double()
    assert vars(model).keys() == vars(plain).keys()
    assert all(not layer._forward_hooks and not layer._backward_hooks for layer in model.modules())
    assert all(vars(weight).keys() <= {"grad"} for weight in model.parameters())


@pytest.mark.parametrize("clipping", ALL)
def test_a_batch_of_nobody_gives_noise_alone(clipping):
    model, (inputs, labels) = convolutions(), drawn(0, dtype=torch.float32)
    (silent,) = stepped(model, clipping, inputs, labels, clip=1.0)
    assert not silent.any()
    (noise,) = stepped(model, clipping, inputs, labels, clip=1.0, noise=1.0, expected=8)
    assert float(noise.std()) == pytest.approx(_effective(clipping, 1.0) / 8, rel=0.1)


def _effective(clipping, noise):
    """Standard deviation of the gradient's noise over the clip norm.

    Adaptive clipping spends a part of the budget on a noised count, of deviation ``noise``
    here (Andrew et al. 2021, Theorem 1).
    """
    return noise if clipping != "adaptive" else (noise**-2 - (2 * noise) ** -2) ** -0.5


@pytest.mark.parametrize("clipping", ALL)
def test_noise_has_the_variance_claimed(clipping):
    """A correct mechanism fails each of three tests with probability 1e-6.

    Of 25,450 draws the variance is known to 4 %.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 390), nn.Tanh(), nn.Linear(390, 1, False))
    model = nn.Sequential(*model, nn.Linear(1, 10))
    inputs, labels = drawn(4, dtype=torch.float32)
    settings = {"clip": 0.5, "expected": 4}
    (plain,) = stepped(model, clipping, inputs, labels, **settings)
    once, again = stepped(model, clipping, inputs, labels, noise=2.0, steps=2, **settings)
    noise = 4 * (once - plain).double().numpy()
    scale = 0.5 * _effective(clipping, 2.0)
    n = len(noise)
    assert n > 25_000
    assert stats.kstest(noise, stats.norm(scale=scale).cdf).pvalue > 1e-6
    low, high = stats.chi2(n).interval(1 - 1e-6)
    assert low < np.square(noise / scale).sum() < high
    if clipping != "adaptive":  # whose norm has moved
        # Each step draws anew: no correlation.
        other = 4 * (again - plain).double().numpy()
        assert abs(np.corrcoef(noise, other)[0, 1]) < stats.norm.isf(5e-7) / math.sqrt(n)


@pytest.fixture
def dataset():
    inputs, labels = drawn(16, dtype=torch.float32)
    return Dataset(inputs.numpy(), labels.numpy(), 10)


FACTS = {"steps": 2, "batch_size": 8, "examples": 16, "momentum": 0.5, "weight_decay": 0.01}
BATCHES = [np.arange(8), np.arange(8, 16)]


def trained(defense, dataset, turn, batches=BATCHES, **whose):
    model = convolutions()
    metrics = local_round(model, dataset, batches, [defense], turn(**{**FACTS, **whose}), CPU)
    return torch.cat([w.detach().flatten() for w in model.parameters()]), metrics


def test_no_noise_and_no_clipping_is_plain_training(dataset, turn):
    plain = convolutions()
    loss = train(plain, dataset, BATCHES, turn(**FACTS).facts, CPU)
    expected = torch.cat([w.detach().flatten() for w in plain.parameters()])
    idle, metrics = trained(DpSgd(clipping="none", noise_multiplier=0.0), dataset, turn)
    assert torch.equal(idle, expected)
    assert metrics == {"train_loss": loss}
    # What clips nothing sums samples in another order.
    for clipping in ("flat", "per-layer", "ghost"):
        wide = DpSgd(clipping=clipping, clip=1e6, noise_multiplier=0.0)
        close, metrics = trained(wide, dataset, turn)
        torch.testing.assert_close(close, expected, rtol=1e-5, atol=1e-6)
        assert metrics == {"train_loss": pytest.approx(loss, rel=1e-6)}
    clipped, _ = trained(DpSgd(clip=0.01, noise_multiplier=0.0), dataset, turn)
    assert not torch.allclose(clipped, expected, rtol=1e-3, atol=1e-3)


def test_noise_is_the_clients_and_the_rounds_own_and_repeats(dataset, turn):
    defense = DpSgd(delta=0.01)
    first, _ = trained(defense, dataset, turn)
    assert torch.equal(first, trained(defense, dataset, turn)[0])
    for other in ({"client": 1}, {"round": 2}, {"seed": 2}):
        assert not torch.allclose(first, trained(defense, dataset, turn, **other)[0])


def test_samples_of_dropout_are_clipped_to_the_norm_that_they_have():
    """Ghost clipping measures and clips in one forward pass: no sum is above the norm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Dropout(0.5), nn.Linear(30, 10))
    inputs, labels = drawn(1, dtype=torch.float32)
    for gradient in stepped(model, "ghost", inputs + 1, labels, clip=0.1, expected=1, steps=20):
        assert float(gradient.norm()) == pytest.approx(0.1, rel=1e-4)


def event(noise, rate, steps):
    gaussian = GaussianDpEvent(noise)
    return SelfComposedDpEvent(
        gaussian if rate == 1 else PoissonSampledDpEvent(rate, gaussian), steps
    )


@pytest.mark.parametrize(
    ("sampling", "rate", "steps"), [("poisson", 0.05, 4), ("shuffle", 1.0, 1), ("poisson", 1.0, 4)]
)
@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_epsilon_composes_over_the_rounds_of_a_client(turn, accountant, sampling, rate, steps):
    """Four steps a round; three rounds. Privacy loss distributions are exact up to 1e-4."""
    defense = DpSgd(noise_multiplier=1.5, delta=1e-4, accountant=accountant, sampling=sampling)
    facts = {"steps": 4, "batch_size": round(rate * 100) if rate < 1 else 100, "examples": 100}
    if sampling == "shuffle":
        facts["batch_size"] = 25  # an epoch a round: each sample is in one step of it

    def epsilon(client, round):
        own = turn(client=client, round=round, **facts)
        _, metrics = defense.release({}, nn.Linear(1, 1), own)
        assert metrics["delta"] == 1e-4
        assert metrics["noise-multiplier"] == 1.5
        return metrics["epsilon"]

    mine = [epsilon(0, round) for round in (1, 4, 5)]
    for rounds, value in enumerate(mine, start=1):
        exact = PLDAccountant().compose(event(1.5, rate, steps * rounds)).get_epsilon(1e-4)
        bound = RdpAccountant().compose(event(1.5, rate, steps * rounds)).get_epsilon(1e-4)
        if accountant == "prv":
            assert exact - 1e-3 <= value <= exact + 0.02
        else:
            # Fewer orders than there may be: a little above the best bound of its kind.
            assert bound - 1e-6 <= value <= bound * 1.02
            assert value >= exact
    assert epsilon(1, 5) == mine[0]


@pytest.mark.filterwarnings("error")
def test_opacus_says_nothing_of_a_sampling_rate_of_one(turn):
    own = turn(steps=4, batch_size=25, examples=100)
    for defense in (DpSgd(noise_multiplier=1.25, sampling="shuffle"), DpSgd(epsilon=7.25)):
        _, metrics = defense.release({}, nn.Linear(1, 1), own)
        assert metrics["epsilon"] > 0


def test_next_to_no_noise_is_accounted_for_in_little_memory(turn):
    """Privacy loss variables would take gigabytes here."""
    _, metrics = DpSgd(noise_multiplier=1e-3).release({}, nn.Linear(1, 1), turn())
    exact = gaussian_epsilon(1e3, 1e-5)
    assert exact < metrics["epsilon"] < exact * 1.2


def test_rounds_with_other_noise_compose_as_well(turn):
    facts = {"steps": 4, "batch_size": 10, "examples": 100}
    for round, noise in ((1, 1.5), (2, 0.9), (3, 1.5)):
        defense = DpSgd(noise_multiplier=noise, delta=1e-4)
        _, metrics = defense.release({}, nn.Linear(1, 1), turn(round=round, **facts))
    oracle = PLDAccountant().compose(event(1.5, 0.1, 8)).compose(event(0.9, 0.1, 4))
    assert metrics["epsilon"] == pytest.approx(oracle.get_epsilon(1e-4), abs=0.02)


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_noise_follows_from_the_epsilon_that_is_planned(turn, accountant):
    defense = DpSgd(epsilon=3.0, delta=1e-4, accountant=accountant)
    noise = {}
    for client, examples in ((0, 100), (1, 40)):
        for round in (1, 2, 3, 4):
            own = turn(
                client=client, round=round, rounds=4, steps=5, batch_size=10, examples=examples
            )
            _, metrics = defense.release({}, nn.Linear(1, 1), own)
        assert 2.97 <= metrics["epsilon"] <= 3.0
        noise[client] = metrics["noise-multiplier"]
        exact = PLDAccountant().compose(event(noise[client], 10 / examples, 20)).get_epsilon(1e-4)
        assert exact <= 3.0
    # Who has fewer samples shows each more often, and needs more noise.
    assert noise[1] > noise[0]


def test_the_adaptive_norm_follows_the_quantile_and_is_kept(dataset, turn):
    defense = DpSgd(clipping="adaptive", clip=1e-3, noise_multiplier=0.0, unclipped=0.25)
    facts = {"steps": 60, "batch_size": 16, "examples": 16, "lr": 1e-9, "momentum": 0.0}
    own = turn(**facts)
    inputs, labels = torch.from_numpy(dataset.inputs), torch.from_numpy(dataset.labels)
    norms = [
        float(torch.cat([g.flatten() for g in one]).norm())
        for one in single_gradients(convolutions(), inputs, labels)
    ]
    kept = []
    for round in (1, 2, 3):
        own = turn(round=round, **facts)
        local_round(convolutions(), dataset, [np.arange(16)] * 60, [defense], own, CPU)
        kept.append(own.state["dp-sgd/clip"]["clip"])
    assert kept[0] > 1e-3
    below = np.mean(np.array(norms) < kept[-1])
    assert 0.05 <= below <= 0.45
    assert abs(math.log(kept[2] / kept[1])) < abs(math.log(kept[0] / 1e-3))


def test_models_that_opacus_cannot_train_are_refused_with_its_remedy():
    bad = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))
    reason = untrainable(bad, (1, 8, 8), "flat")
    assert reason.startswith("Opacus says: BatchNorm cannot support training with differential")
    assert "model.norm = 'group'" in reason
    in_place = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(inplace=True))
    reason = untrainable(in_place, (1, 8, 8), "flat")
    assert reason is None or "Opacus cannot take its per-sample gradients" in reason
    for clipping in ALL:
        assert untrainable(convolutions(), (1, 8, 8), clipping) is None
    words = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(24, 10))
    assert untrainable(words, (6,), "ghost") is None


SCENARIO = {
    "name": "private",
    "seed": 4,
    "data": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [16]},
    "federation": {"clients": 3, "rounds": 2},
    "client": {"batch_size": 4, "local_steps": 3},
}


def private(client=None, **settings):
    raw = copy.deepcopy(SCENARIO)
    raw["client"] |= {"defenses": [{"kind": "dp-sgd", **settings}], **(client or {})}
    return load_scenario(raw)


@pytest.mark.parametrize(
    ("place", "settings", "message"),
    [
        (".epsilon", {"epsilon": 0.0}, "above 0"),
        (".epsilon", {"epsilon": -1.0}, "above 0"),
        (".delta", {"delta": 1.0}, "below 1"),
        ("", {"epsilon": 1.0, "noise_multiplier": 1.0}, "noise_multiplier or epsilon, not both"),
        ("", {"clipping": "none"}, "without clipping no noise gives privacy"),
        (".sampling", {"sampling": "weighted"}, "shuffle"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_with_their_place(refused, place, settings, message):
    assert message in refused(f"client.defenses.0{place}", partial(private, **settings))


@pytest.mark.parametrize(
    ("client", "settings", "message"),
    [
        ({}, {"delta": 0.01}, "delta must be below 1 / samples, and a client trains on"),
        ({}, {"epsilon": 0.001}, "can show no epsilon below"),
        ({"train_mode": False}, {}, "client.train_mode = true"),
    ],
)
def test_what_cannot_hold_for_the_clients_is_refused_before_the_run(
    refused, client, settings, message
):
    text = refused("client.defenses.0", prepare, private(client, **settings))
    assert text.startswith("dp-sgd is unsupported: ")
    assert message in text


def test_batch_norm_is_refused_and_group_norm_is_not():
    def problems(norm):
        raw = private().model_dump(mode="json", exclude_none=True)
        raw["model"] = {"kind": "resnet18", "norm": norm, "small_stem": True}
        try:
            prepare(load_scenario(raw))
        except ScenarioError as refusal:
            return refusal.problems
        return ()

    (problem,) = problems("batch")
    assert isinstance(problem, Problem)
    assert problem.path == "client.defenses.0"
    assert "model.norm = 'group'" in problem.message
    assert problems("group") == ()


def test_a_client_with_too_few_samples_is_told_of():
    (note,) = prepare(private()).notes
    assert "batch_size" not in note
    assert "who has the seed can take it off" in note
    notes = prepare(private({"batch_size": 1000})).notes
    assert any("uses all of them in every step" in note for note in notes)
    (note,) = prepare(private(noise_multiplier=0.0)).notes
    assert "no differential privacy guarantee" in note


def test_state_survives_a_restart(monkeypatch):
    """Each round in a new app, on what the last one left in the client's context."""
    # As an engine does before a message can be made.
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    scenario = private(delta=1e-4)
    prepared = prepare(scenario)
    context = Context(0, 0, {"partition-id": 1}, RecordDict(), {})
    arrays = ArrayRecord(prepared.model().state_dict())
    reported = []
    for round in (1, 2, 3):
        config = ConfigRecord({"server-round": round})
        content = RecordDict({"arrays": arrays, "config": config})
        reply = client_app(lambda _: scenario)(Message(content, 0, "train"), context)
        reported.append(reply.content.metric_records["metrics"]["dp-sgd/epsilon"])
    examples = prepared.facts(1, 1).examples
    for rounds, value in enumerate(reported, start=1):
        oracle = PLDAccountant().compose(event(1.0, 4 / examples, 3 * rounds))
        assert value == pytest.approx(oracle.get_epsilon(1e-4), abs=0.02)


def test_facts_and_truth_follow_the_sampled_batches():
    prepared = prepare(private({"batch_size": 3, "local_steps": 400}))
    facts, batches = prepared.facts(0, 1), prepared.batches(0, 1)
    assert facts == TrainingFacts(lr=0.1, steps=400, batch_size=3, examples=facts.examples)
    sizes = np.array([len(batch) for batch in batches])
    assert len(sizes) == 400
    assert sizes.min() == 0
    # Binomial; 5 standard deviations of the mean: an error in 1e6.
    rate = 3 / facts.examples
    assert abs(sizes.mean() - 3) < 5 * math.sqrt(3 * (1 - rate) / 400)
    assert len(prepared.truth(0, 1).labels) == len(np.unique(np.concatenate(batches)))


def test_rounds_that_sampled_nobody_are_captured_and_audited(tmp_path):
    raw = private({"batch_size": 1, "local_steps": 1}, delta=1e-4).model_dump(
        mode="json", exclude_none=True
    )
    raw["audit"] = {
        "attacks": [{"kind": "analytic"}],
        "measures": [{"kind": "empirical-epsilon", "trials": 20}],
    }
    scenario = load_scenario(raw)
    prepared = prepare(scenario)
    sizes = {(c, r): len(prepared.truth(c, r).labels) for c in range(3) for r in (1, 2)}
    assert 0 in sizes.values() and max(sizes.values()) > 0
    directory = run(scenario, directory=tmp_path / "run")
    audit(directory)
    rows = pyarrow.parquet.read_table(RunLayout(directory).results).to_pylist()
    scored = {(row["client"], row["round"]) for row in rows if row["metric"] == "extraction-recall"}
    assert scored == {(f"client-{c:03d}", r) for (c, r), size in sizes.items() if size}
    claims = [row["value"] for row in rows if row["metric"] == "claimed-epsilon"]
    assert claims == [pytest.approx(gaussian_epsilon(1.0, 1e-4))] * 6
