from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fedleak.models import Architecture, CustomModel, DefaultInit, build, check_model
from fedleak.models.initialisation import UniformInit
from fedleak.models.lenet import LeNet, LeNetDlg
from fedleak.models.mlp import Mlp
from fedleak.models.resnet18 import ResNet18

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels=1, classes=10, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.frozen = nn.BatchNorm2d(4).eval()
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(self.drop(torch.relu(self.frozen(self.conv(x))).mean((2, 3))))

class Pair(Net):
    def forward(self, x):
        return x, x

class TwoInputs(Net):
    def forward(self, x, y):
        return x

class Video(Net):
    def forward(self, x):
        return x.mean(4)

class Stack(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 10))

def plain(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))

def text():
    return "a network"

number = 3
"""

GREY = (1, 28, 28)


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_model.py").write_text(MODULE)
    (tmp_path / "their_broken_model.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "their_model", raising=False)


def weights(model: Architecture, seed: int) -> dict[str, torch.Tensor]:
    return build(model, DefaultInit(), GREY, 10, seed).state_dict()


CUSTOM = CustomModel(kind="their_model:Net", parameters={"dropout": 0.5})


@pytest.mark.parametrize("model", [LeNetDlg(), ResNet18(), CUSTOM], ids=lambda m: m.kind)
def test_the_seed_alone_decides_the_weights(model: Architecture) -> None:
    first = weights(model, 1)
    torch.manual_seed(99)
    again, other = weights(model, 1), weights(model, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_init_follows_the_seed() -> None:
    first, again, other = (
        build(LeNetDlg(), UniformInit(), GREY, 10, seed).fc1.bias for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.abs().max() > 0.1  # torch's own range here is 588 ** -0.5 = 0.04


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build(CUSTOM, UniformInit(), GREY, 10, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("model", [LeNet(), ResNet18(), CUSTOM], ids=lambda m: m.kind)
@pytest.mark.parametrize(
    "values", [{"mean": (0.2,), "std": (0.5,)}, {"mean": (0.2,)}, {"std": (0.5,)}]
)
def test_normalisation_is_inside_the_model(
    model: Architecture, values: dict[str, tuple[float, ...]]
) -> None:
    plain = build(model, DefaultInit(), GREY, 10, 0).eval()
    normalised = build(model.model_copy(update=values), DefaultInit(), GREY, 10, 0).eval()
    # Same state, same names: a capture of the one fits the other.
    assert list(plain.state_dict()) == list(normalised.state_dict())
    assert [n for n, _ in plain.named_buffers()] == [n for n, _ in normalised.named_buffers()]
    x = torch.rand(3, *GREY)
    mean, std = values.get("mean", (0.0,))[0], values.get("std", (1.0,))[0]
    expected = plain((x - mean) / std)
    assert not torch.allclose(plain(x), expected)
    assert torch.allclose(normalised(x), expected, atol=1e-6)
    for twin in (copy.deepcopy(normalised), pickle.loads(pickle.dumps(normalised))):
        assert torch.equal(twin(x), normalised(x))
    called = torch.func.functional_call(normalised, normalised.state_dict(), (x,))
    assert torch.equal(called, normalised(x))


def test_normalisation_by_channel() -> None:
    model = Mlp(hidden=(), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    layer = model.normalisation((3, 2, 2))
    assert layer is not None
    out = layer(torch.ones(1, 3, 2, 2, dtype=torch.float64))
    assert out.dtype == torch.float64
    assert torch.allclose(out[0, :, 1, 1], torch.tensor([0.9, 0.4, 0.175]).double())


def test_normalisation_of_a_network_that_calls_its_children_in_turn() -> None:
    model = CustomModel(kind="their_model:Stack", mean=(0.5,), std=(0.5,))
    network = build(model, DefaultInit(), GREY, 10, 0)
    x = torch.rand(2, *GREY)
    weight, bias = network.state_dict().values()
    assert torch.allclose(network(x), (2 * x - 1).flatten(1) @ weight.T + bias, atol=1e-6)


def test_normalisation_that_does_not_fit(refused: Callable[..., str]) -> None:
    def make(**values: tuple[float, ...]) -> tuple[object, ...]:
        return build, LeNet(**values), DefaultInit(), GREY, 10, 0

    assert "3 value(s)" in refused("model.mean", *make(mean=(0.0, 0.0, 0.0)))
    assert "2 value(s)" in refused("model.std", *make(std=(1.0, 1.0)))
    assert "above 0" in refused("model.std", *make(std=(0.0,)))


def test_custom_model_with_parameters() -> None:
    model = CustomModel(kind="their_model:Net", parameters={"channels": 3, "classes": 7})
    network = build(model, DefaultInit(), (3, 8, 8), 7, 0)
    assert type(network).__name__ == "Net"
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 7)


def test_a_function_may_make_the_network() -> None:
    model = CustomModel(kind="their_model:plain", parameters={"classes": 10})
    assert isinstance(build(model, DefaultInit(), GREY, 10, 0), nn.Sequential)


@pytest.mark.parametrize(
    ("kind", "parameters", "path", "says"),
    [
        ("their_modl:Net", {}, "model.kind", "their_modl"),
        ("their_model:Nets", {}, "model.kind", "Nets"),
        ("their_broken_model:Net", {}, "model.kind", "ZeroDivisionError"),
        ("their_model:number", {}, "model.kind", "not callable"),
        ("their_model:text", {}, "model.kind", "str"),
        ("their_model:plain", {}, "model.parameters", "'classes'"),
        ("their_model:Net", {"chanels": 3}, "model.parameters", "'chanels'"),
        ("their_model:Net", {"channels": 3}, "model", "'conv'"),
        ("their_model:Net", {"classes": 5}, "model", "(2, 5)"),
        ("their_model:Pair", {}, "model", "tuple"),
        ("their_model:TwoInputs", {}, "model", "'y'"),
        ("their_model:Video", {}, "model", "out of range"),
    ],
)
def test_custom_mistakes(
    kind: str, parameters: dict[str, object], path: str, says: str, refused: Callable[..., str]
) -> None:
    model = CustomModel(kind=kind, parameters=parameters)
    assert says in refused(path, build, model, DefaultInit(), GREY, 10, 0)


def test_check_says_which_layer_got_what(refused: Callable[..., str]) -> None:
    network = LeNet().build((1, 28, 28), 10)
    message = refused("model", check_model, network, (1, 32, 32), 10)
    assert "(1, 32, 32)" in message
    assert "'fc1'" in message
    assert "in_features=256" in message
    assert "(400,)" in message
    message = refused("model", check_model, network, (1, 28, 28), 100)
    assert "(2, 100)" in message
    assert "(2, 10)" in message


def test_check_leaves_the_model_as_it_was(refused: Callable[..., str]) -> None:
    network = CUSTOM.build(GREY, 10).train()
    network.frozen.eval()
    before = copy.deepcopy(network.state_dict())
    check_model(network, GREY, 10)
    refused("model", check_model, network, (3, 28, 28), 10)
    assert network.training
    assert network.drop.training
    assert not network.frozen.training
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_model_with_nothing_to_train_is_refused(refused: Callable[..., str]) -> None:
    network = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))
    message = refused("model", check_model, network, GREY, 10)
    assert "no parameter that is trained" in message
