"""Jacobian norms against a closed form and against central differences in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.measures import Evidence, JacobianSensitivity, Value
from fedleak.measures.jacobian_sensitivity import jacobian_norms
from fedleak.records import Dataset, DataSplits, Setting, TrainingFacts

Client = Callable[..., Evidence]
CLASSES, SHAPE = 3, (1, 4, 4)


def trained(model: nn.Module, given: Evidence, inputs: Tensor) -> dict[str, Tensor]:
    """The update by plain SGD on the given samples, in their order."""
    facts, truth = given.observation.facts, given.truth
    assert truth is not None
    current = dict(given.observation.parameters)
    starts = range(0, facts.examples, facts.batch_size)
    for step in range(facts.steps):
        start = starts[step % len(starts)]
        batch = slice(start, start + facts.batch_size)
        values = {name: value.clone().requires_grad_() for name, value in current.items()}
        logits = torch.func.functional_call(model, values, (inputs[batch],))
        loss = functional.cross_entropy(logits, torch.from_numpy(truth.labels)[batch])
        slopes = torch.autograd.grad(loss, list(values.values()))
        for name, slope in zip(values, slopes, strict=True):
            current[name] = current[name] - facts.lr * slope
    sent = given.observation.parameters
    return {name: (sent[name] - current[name]) / facts.lr for name in sent}


def differences(model: nn.Module, given: Evidence, sample: int) -> Iterator[dict[str, Tensor]]:
    """The Jacobian's columns by central differences."""
    assert given.truth is not None
    inputs, step = torch.from_numpy(given.truth.inputs), 1e-5
    for pixel in range(inputs[0].numel()):
        apart = torch.zeros_like(inputs)
        apart[sample].view(-1)[pixel] = step
        above, below = (trained(model, given, inputs + sign * apart) for sign in (1, -1))
        yield {name: (above[name] - below[name]) / (2 * step) for name in above}


def table(values: Iterator[Value]) -> dict[tuple[str, str | None, int], float]:
    return {(row.metric, row.layer, row.sample): row.value for row in values}


@pytest.mark.parametrize(
    ("samples", "facts"),
    [(1, {}), (2, {}), (3, {"steps": 3, "lr": 0.5})],
    ids=["gradient", "batch", "local steps"],
)
def test_norms_are_those_of_a_dense_jacobian_by_central_differences(
    smooth_net: nn.Module, client: Client, samples: int, facts: dict[str, float]
) -> None:
    model = smooth_net
    given = client(model, samples, **facts)
    found = table(JacobianSensitivity().measure(given))
    assert given.truth is not None
    update = trained(model, given, torch.from_numpy(given.truth.inputs))
    for sample in range(samples):
        columns = list(differences(model, given, sample))
        for layer in ("0", "4", "6"):
            parts = [f"{layer}.weight", f"{layer}.bias"]
            dense = torch.stack(
                [torch.cat([column[name].flatten() for name in parts]) for column in columns], 1
            )
            size = torch.cat([update[name].flatten() for name in parts])
            for name, p, q in (("f", "fro", 2), ("1", 1, 1), ("inf", math.inf, math.inf)):
                norm = float(torch.linalg.matrix_norm(dense, p))
                assert found[f"jacobian-{name}-norm", layer, sample] == pytest.approx(norm, 1e-6)
                relative = norm / float(torch.linalg.vector_norm(size, q))
                got = found[f"jacobian-{name}-norm-relative", layer, sample]
                assert got == pytest.approx(relative, 1e-6)


def test_a_two_layer_network_in_closed_form(client: Client) -> None:
    """``softmax(V W x)``: with ``e = V'(p - y)``, ``d(e x')`` is known in full."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 5, bias=False), nn.Linear(5, CLASSES, bias=False)
    ).double()
    given = client(model)
    assert given.truth is not None
    first, second = (weight.detach() for weight in model.parameters())
    x = torch.from_numpy(given.truth.inputs).flatten()
    target = functional.one_hot(torch.tensor(given.truth.labels[0]), CLASSES).double()
    p = torch.softmax(second @ first @ x, 0)
    slopes = (torch.diag(p) - torch.outer(p, p)) @ second @ first
    # d(W)_ij / dx_k = (V' dp/dx_k)_i x_j + (V'(p - y))_i [j = k], and likewise for V.
    of_first = torch.einsum("ik,j->ijk", second.T @ slopes, x)
    of_first += torch.einsum("i,jk->ijk", second.T @ (p - target), torch.eye(16))
    of_second = torch.einsum("ik,j->ijk", slopes, first @ x)
    of_second += torch.einsum("i,jk->ijk", p - target, first)
    found = table(JacobianSensitivity().measure(given))
    for layer, dense in (("1", of_first), ("2", of_second)):
        matrix = dense.flatten(0, 1)
        for name, order in (("f", "fro"), ("1", 1), ("inf", math.inf)):
            norm = float(torch.linalg.matrix_norm(matrix, order))
            assert found[f"jacobian-{name}-norm", layer, 0] == pytest.approx(norm, 1e-12)


def test_the_norms_do_not_depend_on_how_the_columns_are_cut() -> None:
    whole = {"a": torch.randn(7, 2, 3), "b": torch.randn(7, 4)}
    layers = {"both": ("a", "b")}
    blocks = [{name: value[at] for name, value in whole.items()} for at in (slice(3), slice(3, 7))]
    matrix = torch.cat([whole["a"].flatten(1), whole["b"]], 1).T
    expected = [float(torch.linalg.matrix_norm(matrix, p)) for p in ("fro", 1, math.inf)]
    for columns in ([whole], blocks):
        assert jacobian_norms(columns, layers)["both"] == pytest.approx(expected)


def test_the_mean_over_samples_has_an_interval(smooth_net: nn.Module, client: Client) -> None:
    rows = list(JacobianSensitivity(samples=3).measure(client(smooth_net, 4)))
    values = [r.value for r in rows if r.metric == "jacobian-f-norm" and r.layer == "0"]
    (mean,) = (r for r in rows if (r.metric, r.layer, r.sample) == ("jacobian-f-norm", "0", -1))
    assert len(values) == 3 + 1
    each = np.array(values[:3])
    # Student's t for two degrees of freedom.
    reach = 4.302652729911275 * each.std(ddof=1) / math.sqrt(3)
    assert (mean.value, mean.low, mean.high) == pytest.approx(
        (each.mean(), max(each.mean() - reach, 0), each.mean() + reach)
    )


def test_a_layer_without_parameters_has_no_rows_and_a_dead_one_no_relative_norm(
    smooth_net: nn.Module, client: Client
) -> None:
    model = smooth_net
    with torch.no_grad():
        model[6].weight.zero_()
    model[0].requires_grad_(False)
    found = table(JacobianSensitivity().measure(client(model)))
    assert {layer for _, layer, _ in found} == {"4", "6"}
    assert found["jacobian-f-norm", "4", 0] == 0
    assert math.isnan(found["jacobian-f-norm-relative", "4", 0])


def test_texts_are_refused(smooth_net: nn.Module) -> None:
    model, facts = smooth_net, TrainingFacts(0.1, 1, 1, 1)
    texts = Dataset(np.zeros((1, 9), np.int64), np.zeros(1, np.int64), 2, {}, ("a", "b"))
    told = JacobianSensitivity().unsupported(
        Setting(model, facts, (9,), 2, DataSplits(texts, texts))
    )
    assert told is not None and "no images" in told
    assert JacobianSensitivity().unsupported(Setting(model, facts, SHAPE, CLASSES, None)) is None


def test_a_layer_that_was_held_back_has_no_values(client: Client, smooth_net: nn.Module) -> None:
    given = client(smooth_net, samples=2)
    whole = table(JacobianSensitivity().measure(given))
    held = {"0.weight", "0.bias", "4.bias"}
    for name in held:
        given.observation.update[name].zero_()  # type: ignore[index]
    rows = table(JacobianSensitivity().measure(given))
    assert {layer for _, layer, _ in rows} == {"4", "6"}
    assert rows["jacobian-f-norm", "6", 0] == whole["jacobian-f-norm", "6", 0]
    # What came back of the layer counts: its weights without its biases.
    assert rows["jacobian-f-norm", "4", 0] < whole["jacobian-f-norm", "4", 0]


def test_a_norms_interval_ends_at_zero(client: Client, smooth_net: nn.Module) -> None:
    given = client(smooth_net, samples=2)
    values = list(JacobianSensitivity().measure(given))
    ends = [value.low for value in values if not math.isnan(value.low)]
    assert ends and min(ends) >= 0
