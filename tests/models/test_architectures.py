from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.signal import correlate2d
from torch import nn

from fedleak.errors import ScenarioError
from fedleak.models import MODELS, Architecture
from fedleak.models.boenisch import BoenischCnn, BoenischFc
from fedleak.models.lenet import LeNet, LeNetDlg
from fedleak.models.mlp import Mlp
from fedleak.models.resnet18 import ResNet18
from fedleak.models.text import BoenischText

GREY, COLOUR = (1, 28, 28), (3, 32, 32)


@pytest.mark.parametrize(
    ("model", "shape", "classes", "parameters"),
    [
        (Mlp(), GREY, 10, 784 * 128 + 128 + 128 * 10 + 10),
        (Mlp(hidden=()), GREY, 10, 7850),
        (Mlp(hidden=(5, 4)), (7,), 3, 40 + 24 + 15),
        # 3*12*25+12, twice 12*12*25+12, 12*8*8*100+100
        (LeNetDlg(), COLOUR, 100, 912 + 2 * 3612 + 76_900),
        # 28 -> 14 -> 7
        (LeNetDlg(), GREY, 10, 312 + 2 * 3612 + 5890),
        # odd sides round up: 9 -> 5 -> 3, 6 -> 3 -> 2
        (LeNetDlg(), (1, 9, 6), 2, 312 + 2 * 3612 + 12 * 3 * 2 * 2 + 2),
        # 6*3*25+6, 16*6*25+16, 400*120+120, 120*84+84, 84*10+10
        (LeNet(), COLOUR, 10, 456 + 2416 + 48_120 + 10_164 + 850),
        (LeNet(pooling="average"), GREY, 10, 156 + 2416 + 30_840 + 10_164 + 850),
        # the smallest, 16 -> 12 -> 6 -> 2 -> 1, and 20 -> 16 -> 8 -> 4 -> 2
        (LeNet(), (1, 16, 20), 10, 156 + 2416 + 32 * 120 + 120 + 10_164 + 850),
        (
            BoenischFc(),
            GREY,
            10,
            785_000 + 3_003_000 + 9_003_000 + 6_002_000 + 2_001_000 + 10_010,
        ),
        # 1*9*128+128, 128*9*256+256, 256*9*512+512, 512*4*4*1000+1000, 1000*10+10
        (BoenischCnn(), (1, 4, 4), 10, 1280 + 295_168 + 1_180_160 + 8_193_000 + 10_010),
        (BoenischCnn(channels=(4,), width=8), COLOUR, 10, 112 + 4 * 32 * 32 * 8 + 8 + 90),
        # torchvision's published count, and the one for CIFAR-10 with the 3x3 stem
        (ResNet18(small_stem=False), (3, 96, 96), 1000, 11_689_512),
        (ResNet18(), COLOUR, 10, 11_173_962),
        (ResNet18(norm="group"), GREY, 10, 11_173_962 - 2 * 64 * 9),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_parameter_count_and_output_shape(
    model: Architecture, shape: tuple[int, ...], classes: int, parameters: int
) -> None:
    network = model.build(shape, classes)
    assert sum(p.numel() for p in network.parameters()) == parameters
    with torch.no_grad():
        assert network.eval()(torch.rand(2, *shape)).shape == (2, classes)


SMALL = (
    Mlp(hidden=(4,)),
    LeNetDlg(),
    LeNet(),
    BoenischFc(widths=(5, 4)),
    BoenischCnn(channels=(2,), width=4),
    ResNet18(norm="group", groups=8),
)


def test_every_model_is_tested() -> None:
    assert {type(model) for model in SMALL} == set(MODELS) - {BoenischText}


def test_the_text_classifier() -> None:
    network = BoenischText().build((250,), 2)
    sizes = 10_000 * 250, 250 * 250 * 1000 + 1000, 1000 * 2 + 2
    assert sum(p.numel() for p in network.parameters()) == sum(sizes)
    assert network.embedding.weight.min() >= 0 and 0.99 < network.embedding.weight.max() <= 1
    small = BoenischText(tokens=9, dimension=4, widths=(5,)).build((3,), 2)
    assert small(torch.randint(0, 9, (7, 3))).shape == (7, 2)
    with pytest.raises(ScenarioError, match="needs texts"):
        BoenischText().build(GREY, 10)


@pytest.mark.parametrize("model", SMALL, ids=lambda model: model.kind)
def test_fit_for_attacks(model: Architecture) -> None:
    """Plain dense layers, nothing in place, and second derivatives for batches of inputs."""
    torch.manual_seed(0)
    network = model.build((1, 16, 16), 3).double()
    dense = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert dense
    assert all(type(layer) is nn.Linear for layer in dense)
    assert not any(getattr(module, "inplace", False) for module in network.modules())
    parameters = {name: value.detach() for name, value in network.named_parameters()}

    def gradient_norm(x: torch.Tensor) -> torch.Tensor:
        def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
            logits = torch.func.functional_call(network, values, (x[None],))
            return nn.functional.cross_entropy(logits, torch.tensor([1]))

        return sum((g**2).sum() for g in torch.func.grad(loss)(parameters).values())

    candidates = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    together = torch.func.vmap(torch.func.grad(gradient_norm))(candidates)
    alone = torch.stack([torch.func.grad(gradient_norm)(x) for x in candidates])
    assert together.abs().max() > 0
    assert torch.allclose(together, alone, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("model", SMALL, ids=lambda model: model.kind)
def test_layer_names_are_words(model: Architecture) -> None:
    names = [name for name, _ in model.build((1, 16, 16), 3).named_children()]
    assert all(name[0].isalpha() for name in names)


def convolve(x: np.ndarray, layer: nn.Conv2d, stride: int = 1, padding: int = 0) -> np.ndarray:
    """Convolution ``(C, H, W) -> (C', H', W')`` by SciPy, in float64."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    out = [
        sum(correlate2d(plane, kernel, mode="valid") for plane, kernel in zip(x, w, strict=True))
        for w in weight
    ]
    return np.stack(out)[:, ::stride, ::stride] + bias[:, None, None]


def dense(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
    return layer.weight.detach().double().numpy() @ x + layer.bias.detach().double().numpy()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 9, 6)])
def test_lenet_dlg_against_scipy(shape: tuple[int, int, int]) -> None:
    network = LeNetDlg().build(shape, 5).double()
    x = np.random.default_rng(0).random(shape)
    hidden = sigmoid(convolve(x, network.conv1, stride=2, padding=2))
    hidden = sigmoid(convolve(hidden, network.conv2, stride=2, padding=2))
    hidden = sigmoid(convolve(hidden, network.conv3, stride=1, padding=2))
    expected = dense(hidden.ravel(), network.fc1)
    actual = network(torch.from_numpy(x)[None])[0].detach().numpy()
    assert np.allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 19, 16)])
def test_lenet_against_scipy(shape: tuple[int, int, int], pooling: str) -> None:
    network = LeNet(pooling=pooling).build(shape, 5).double()
    reduce = np.max if pooling == "max" else np.mean

    def pool(x: np.ndarray) -> np.ndarray:
        channels, rows, columns = x.shape[0], x.shape[1] // 2, x.shape[2] // 2
        cut = x[:, : 2 * rows, : 2 * columns].reshape(channels, rows, 2, columns, 2)
        return reduce(cut, axis=(2, 4))

    x = np.random.default_rng(0).random(shape)
    hidden = pool(np.maximum(convolve(x, network.conv1), 0))
    hidden = pool(np.maximum(convolve(hidden, network.conv2), 0)).ravel()
    hidden = np.maximum(dense(hidden, network.fc1), 0)
    hidden = np.maximum(dense(hidden, network.fc2), 0)
    expected = dense(hidden, network.fc3)
    actual = network(torch.from_numpy(x)[None])[0].detach().numpy()
    assert np.allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("relu", 0.0),
        ("sigmoid", 1 / (1 + np.e)),
        ("tanh", -np.tanh(1)),
        ("elu", np.exp(-1) - 1),
        ("gelu", -0.158655253931457),  # -1 times the normal distribution function at -1
        ("softplus", np.log1p(np.exp(-1))),
    ],
)
def test_mlp_activation(name: str, value: float) -> None:
    network = Mlp(hidden=(1,), activation=name).build((1,), 1).double()
    with torch.no_grad():
        for parameter, number in zip(network.parameters(), (1, 0, 1, 0), strict=True):
            parameter.fill_(number)
    assert network(torch.tensor([[-1.0]]).double()).item() == pytest.approx(value, abs=1e-12)


def test_boenisch_convolutions_keep_the_size() -> None:
    network = BoenischCnn(channels=(2, 3), width=4).build((1, 5, 7), 3)
    x = torch.rand(1, 1, 5, 7)
    for name in ("conv1", "conv_act1", "conv2", "conv_act2"):
        x = network.get_submodule(name)(x)
    assert x.shape == (1, 3, 5, 7)


@pytest.mark.parametrize(
    ("side", "small_stem", "kernel", "map_side"),
    [(64, None, 3, 8), (65, None, 7, 3), (64, False, 7, 2), (96, True, 3, 12), (8, None, 3, 1)],
)
def test_resnet_stem(side: int, small_stem: bool | None, kernel: int, map_side: int) -> None:
    network = ResNet18(norm="group", small_stem=small_stem).build((1, side, side), 2)
    seen: list[torch.Size] = []
    network.layer4.register_forward_hook(lambda *args: seen.append(args[2].shape))
    network(torch.zeros(1, 1, side, side))
    assert network.conv1.kernel_size == (kernel, kernel)
    assert seen == [(1, 512, map_side, map_side)]


def test_resnet_norm() -> None:
    batch = ResNet18().build(COLOUR, 2)
    group = ResNet18(norm="group", groups=16).build(COLOUR, 2)
    assert not any(isinstance(m, nn.GroupNorm) for m in batch.modules())
    assert not list(group.buffers())
    groups = [m.num_groups for m in group.modules() if isinstance(m, nn.GroupNorm)]
    assert groups == [16] * 20
    with pytest.raises(ValidationError, match="divide 64"):
        ResNet18(groups=24)


def test_sizes_and_samples_that_do_not_fit(refused: Callable[..., str]) -> None:
    message = refused("model.kind", LeNet().build, (1, 15, 28), 10)
    assert "16x16" in message
    assert "15x28" in message
    for model in (LeNet(), LeNetDlg(), BoenischCnn(), ResNet18()):
        assert "(100,)" in refused("model.kind", model.build, (100,), 10)


@pytest.mark.parametrize(
    "values", [{"hidden": (0,)}, {"hidden": (-3,)}, {"activation": "swish"}, {"mean": (np.nan,)}]
)
def test_bad_fields(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Mlp(**values)
