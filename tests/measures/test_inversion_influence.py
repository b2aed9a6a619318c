"""I²F against the dense solve of a Jacobian made by autograd, in float64."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedleak.errors import MeasureFailed
from fedleak.measures import Evidence, InversionInfluence, Value, inversion_influence
from fedleak.models import TextTransformer
from fedleak.records import Dataset, DataSplits, Observation, Setting, TrainingFacts, Truth

Client = Callable[..., Evidence]
DAMPING = 1e-9


@pytest.fixture(params=["factorised", "conjugate gradients"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "conjugate gradients":
        monkeypatch.setattr(inversion_influence, "_DENSE", 0)


def jacobian(given: Evidence, sample: int) -> Tensor:
    """``(pixels, parameters)``: the gradient's derivative in one sample."""
    assert given.truth is not None
    model = given.observation.model
    inputs, labels = torch.from_numpy(given.truth.inputs), torch.from_numpy(given.truth.labels)

    def gradient(at: Tensor) -> Tensor:
        batch = torch.cat([inputs[:sample], at[None], inputs[sample + 1 :]])
        loss = nn.functional.cross_entropy(model(batch), labels)
        slopes = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        return torch.cat([slope.flatten() for slope in slopes])

    slopes = torch.autograd.functional.jacobian(gradient, inputs[sample])
    return slopes.flatten(1).T


def noisy(given: Evidence, sigma: float) -> tuple[Evidence, Tensor]:
    """The evidence after a defense that added Gaussian noise, and the noise."""
    generator = torch.Generator().manual_seed(5)
    noise = {
        name: sigma * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in given.observation.update.items()
    }
    released = {name: value + noise[name] for name, value in given.observation.update.items()}
    observation = dataclasses.replace(given.observation, update=released)
    flat = torch.cat([value.flatten() for value in noise.values()])
    return dataclasses.replace(given, observation=observation), flat


def table(values: Iterator[Value]) -> dict[tuple[str, int], Value]:
    return {(row.metric, row.sample): row for row in values}


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("samples", [1, 2])
def test_for_the_noise_that_was_added_it_is_the_dense_solve(
    smooth_net: nn.Module, client: Client, samples: int
) -> None:
    given, noise = noisy(client(smooth_net, samples), 0.01)
    found = table(InversionInfluence(damping=DAMPING).measure(given))
    exact = []
    for sample in range(samples):
        slopes = jacobian(given, sample)
        curvature = slopes @ slopes.T
        largest = torch.linalg.eigvalsh(curvature)[-1]
        damped = curvature + DAMPING * largest * torch.eye(16)
        exact.append(float(torch.linalg.solve(damped, slopes @ noise).norm()))
        assert found["i2f", sample].value == pytest.approx(exact[-1], rel=1e-4)
        bound = float((slopes @ noise).norm() / largest)
        assert found["i2f-bound", sample].value == pytest.approx(bound, rel=1e-3)
    assert found["i2f", -1].value == pytest.approx(np.mean(exact), rel=1e-4)
    assert math.isnan(found["i2f", -1].low) == (samples == 1)


@pytest.mark.usefixtures("_path")
def test_the_bound_never_exceeds_it(smooth_net: nn.Module, client: Client) -> None:
    given = client(smooth_net)
    for seed in range(20):
        drawn = dataclasses.replace(given, seed=seed)
        found = table(InversionInfluence(sigma=0.1, damping=DAMPING, draws=2).measure(drawn))
        assert 0 < found["i2f-bound", 0].value <= found["i2f", 0].value * 1.001


def test_the_expectation_is_that_of_many_draws(
    smooth_net: nn.Module, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = client(smooth_net)
    # A damping at which no single direction decides.
    exact = table(InversionInfluence(sigma=0.3, damping=1e-3).measure(given))
    monkeypatch.setattr(inversion_influence, "_DENSE", 0)
    drawn = table(InversionInfluence(sigma=0.3, damping=1e-3, draws=400).measure(given))
    for metric in ("i2f-expected", "i2f-bound-expected"):
        row = drawn[metric, 0]
        assert row.value == pytest.approx(exact[metric, 0].value, rel=0.1)
        assert row.low < exact[metric, 0].value < row.high
        assert row.high - row.low < 0.4 * row.value


def test_without_the_exact_one_there_is_its_bound(smooth_net: nn.Module, client: Client) -> None:
    given = client(smooth_net)
    both = table(InversionInfluence(sigma=1.0).measure(given))
    found = table(InversionInfluence(sigma=1.0, exact=False).measure(given))
    assert {metric for metric, _ in found} == {"i2f-bound", "i2f-bound-expected"}
    assert found["i2f-bound", 0].value == pytest.approx(both["i2f-bound", 0].value, rel=2e-3)


def test_what_does_not_converge_fails(
    smooth_net: nn.Module, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inversion_influence, "_DENSE", 0)
    given, _ = noisy(client(smooth_net), 0.01)
    with pytest.raises(MeasureFailed, match=r"3 steps .* raise cg_steps or damping"):
        list(InversionInfluence(cg_steps=3).measure(given))


def test_a_model_that_ignores_the_sample_fails(smooth_net: nn.Module, client: Client) -> None:
    with torch.no_grad():
        for parameter in smooth_net.parameters():
            parameter.zero_()
    with pytest.raises(MeasureFailed, match="does not depend"):
        list(InversionInfluence().measure(client(smooth_net)))


def text_setting(model: nn.Module, steps: int = 1) -> Setting:
    texts = Dataset(np.zeros((1, 3), np.int64), np.zeros(1, np.int64), 2, {}, ("a", "b"))
    splits = DataSplits(texts, texts)
    return Setting(model, TrainingFacts(0.1, steps, 2, 2), (3,), 2, splits)


@pytest.fixture
def transformer() -> nn.Sequential:
    torch.manual_seed(0)
    built = TextTransformer(tokens=11, dimension=4, heads=2, blocks=1, width=5).build((3,), 2)
    assert isinstance(built, nn.Sequential)
    return built.double()


@pytest.mark.usefixtures("_path")
def test_of_a_text_it_is_the_dense_solve_behind_the_embedding(transformer: nn.Sequential) -> None:
    embedding, rest = transformer[0], transformer[1:]
    truth = Truth(np.array([[3, 7, 3], [10, 0, 1]]), np.array([1, 0]))
    loss = nn.functional.cross_entropy(
        transformer(torch.from_numpy(truth.inputs)), torch.from_numpy(truth.labels)
    )
    names, values = zip(*transformer.named_parameters(), strict=True)
    clean = dict(zip(names, torch.autograd.grad(loss, values), strict=True))
    generator = torch.Generator().manual_seed(5)
    noise = {
        name: 0.01 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in clean.items()
    }
    sent = {name: value.detach() for name, value in zip(names, values, strict=True)}
    released = {name: value + noise[name] for name, value in clean.items()}
    setting = text_setting(transformer)
    observation = Observation(
        transformer, sent, dict(transformer.named_buffers()), released, setting.facts, (3,), 2
    )
    assert InversionInfluence().unsupported(setting) is None
    evidence = Evidence(observation, truth, None, None, seed=0)
    found = table(InversionInfluence(damping=DAMPING).measure(evidence))

    vectors = dataclasses.replace(
        truth, inputs=embedding(torch.from_numpy(truth.inputs)).detach().numpy()
    )
    behind = dataclasses.replace(
        evidence, truth=vectors, observation=dataclasses.replace(observation, model=rest)
    )
    flat = torch.cat([value.flatten() for name, value in noise.items() if name != names[0]])
    for sample in range(2):
        slopes = jacobian(behind, sample)
        curvature = slopes @ slopes.T
        largest = torch.linalg.eigvalsh(curvature)[-1]
        damped = curvature + DAMPING * largest * torch.eye(12)
        exact = float(torch.linalg.solve(damped, slopes @ flat).norm())
        assert found["i2f", sample].value == pytest.approx(exact, rel=1e-3)
        bound = float((slopes @ flat).norm() / largest)
        assert found["i2f-bound", sample].value == pytest.approx(bound, rel=1e-3)


def test_texts_without_an_embedding_or_with_several_steps_are_refused(
    smooth_net: nn.Module, transformer: nn.Sequential
) -> None:
    told = InversionInfluence().unsupported(text_setting(smooth_net))
    assert told is not None and "no images" in told
    told = InversionInfluence().unsupported(text_setting(transformer, steps=2))
    assert told is not None and "several local steps" in told
