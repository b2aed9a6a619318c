"""Whole models as traps: the sample arrives at the trapped layer, or the refusal says why."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedleak.models import BoenischCnn, BoenischFc, LeNet, LeNetDlg
from fedleak.models.building import normalised
from fedleak.traps import NoTrap, set_trap

SHAPE = (3, 8, 8)
SIZE = 3 * 8 * 8


def trapped(model: nn.Module, shape: tuple[int, ...] = SHAPE, **settings: Any) -> dict[str, Tensor]:
    """Turn a model into a trap, in place; gives what was changed."""
    settings = {"scaling": 0.9, "sigma": 0.1, "rng": np.random.default_rng(0), **settings}
    made = set_trap(model, model.state_dict(), True, shape, **settings)
    model.load_state_dict({**model.state_dict(), **made})
    return made


def given(model: nn.Module, layer: str, samples: Tensor) -> Tensor:
    """What a layer is given."""
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        model(samples)
    hook.remove()
    return seen[0]


def cnn(*channels: int, stride: int = 1, kernel: int = 3, mean: Any = None) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = 3
    for number, filters in enumerate(channels, start=1):
        layers[f"conv{number}"] = nn.Conv2d(before, filters, kernel, stride, kernel // 2)
        layers[f"act{number}"] = nn.ReLU()
        before = filters
    layers["flat"] = nn.Flatten()
    side = 8
    for _ in channels:
        side = -(-side // stride)
    layers["fc1"] = nn.Linear(before * side * side, 20)
    layers["act"] = nn.ReLU()
    layers["fc2"] = nn.Linear(20, 10)
    return nn.Sequential(layers)


def behind(*layers: Any) -> nn.Module:
    """Layers, as many features as they have behind them last, and the trap."""
    *before, features = layers
    named = [(f"part{number}", layer) for number, layer in enumerate([*before, nn.ReLU()])]
    dense = [("fc1", nn.Linear(features, 20)), ("act", nn.ReLU()), ("fc2", nn.Linear(20, 10))]
    return nn.Sequential(OrderedDict([*named, ("flat", nn.Flatten()), *dense]))


class ByKeyword(nn.Module):
    """Gives a layer its input by name."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 5, 3, padding=1), last
        self.fc1, self.fc2 = nn.Linear(5 * 64, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.last(input=self.conv(x)).flatten(1)).relu())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


PASSED_ON = {
    "one convolution": cnn(3),
    "several": cnn(5, 9, 7),
    "large kernels": cnn(4, 4, kernel=5),
    "a stride of 2 into 4 channels each": cnn(12, stride=2),
    "two strides": cnn(12, 50, stride=2, kernel=5),
    "a patch each": behind(nn.Conv2d(3, 48, 4, stride=4), 48 * 4),
    "different strides": behind(nn.Conv2d(3, 6, (3, 2), (1, 2), (1, 0)), 6 * 8 * 4),
    "no padding": behind(nn.Conv2d(3, 12, 3), 12 * 36),
    "dilation": behind(nn.Conv2d(3, 3, 3, padding=2, dilation=2), 3 * 64),
    "groups": behind(nn.Conv2d(3, 12, 2, stride=2, groups=3), 12 * 16),
    "by keyword": ByKeyword(nn.ReLU()),
    "pooling of single pixels": behind(
        nn.Conv2d(3, 3, 3, padding=1), nn.MaxPool2d(1), nn.AvgPool2d(1),
        nn.AdaptiveAvgPool2d(8), nn.AdaptiveMaxPool2d((8, 8)), 3 * 64,
    ),
    "pooling of what strides made a single place": behind(
        nn.Conv2d(3, 192, 8, stride=8), nn.MaxPool2d(3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1), 192,
    ),
}  # fmt: skip


@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "hidden"])
@pytest.mark.parametrize("name", PASSED_ON)
def test_convolutions_hand_on_every_pixel_and_nothing_else(name: str, hidden: bool) -> None:
    model = PASSED_ON[name]
    trapped(model, hidden=hidden)
    samples = torch.rand(4, *SHAPE)
    features = given(model, "fc1", samples)
    lit = (features > 0).any(0)
    # Each pixel scaled: the features are the pixels in another order.
    scale = features[:, lit].amax(0)
    pixels = samples.flatten(1)
    pairs = (features[:, lit] / scale).T, (pixels / pixels.amax(0)).T
    apart = torch.cdist(*pairs, p=torch.inf)
    nearest = apart.min(1)
    assert nearest.values.max() < 1e-4
    assert len(nearest.indices.unique()) == SIZE
    if name != "no padding":  # where two filters see the middle of the image
        assert lit.sum() == SIZE
    if not hidden:
        assert torch.isin(features[:, lit], pixels).all()


def test_channels_are_placed_at_random() -> None:
    places = set()
    for seed in range(5):
        model = cnn(9)
        made = trapped(model, rng=np.random.default_rng(seed))
        places.add(tuple(made["conv1.weight"][:, :, 1, 1].nonzero()[:, 0].tolist()))
    assert len(places) > 1


def test_only_the_last_convolution_silences_its_other_filters() -> None:
    model = cnn(9, 9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = trapped(model)
    others = [i for i in range(9) if (made["conv1.weight"][i] != 0).sum() > 1]
    assert len(others) == 6
    torch.testing.assert_close(made["conv1.weight"][others], before["conv1.weight"][others])
    others = [i for i in range(9) if (made["conv2.weight"][i] != 0).sum() > 1]
    assert len(others) == 6 and (made["conv2.weight"][others] <= 0).all()
    assert "fc2.weight" not in made


def dense(*after: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 20), *after)


@pytest.mark.parametrize("model", [cnn(5, 5), dense(nn.ReLU(), nn.Linear(20, 10))])
def test_normalisation_inside_the_model_is_undone(model: nn.Module) -> None:
    """The rows weigh pixels as Algorithm 1 says, whatever stands before them."""
    settings = BoenischFc(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    plain = normalised(settings, model, SHAPE)
    made = trapped(plain)
    layer = "fc1" if "fc1.weight" in made else "1"
    samples = torch.rand(64, *SHAPE)
    seen = given(plain, layer, samples)
    outputs = seen @ made[f"{layer}.weight"].T + made[f"{layer}.bias"]
    # Recovered by least squares, the weights of pixels are balanced.
    many = torch.rand(2000, *SHAPE).double()
    values = (given(plain, layer, many.float()) @ made[f"{layer}.weight"].T).double()
    values += made[f"{layer}.bias"].double()
    padded = torch.cat([many.flatten(1), torch.ones(2000, 1)], 1)
    weights = torch.linalg.lstsq(padded, values).solution
    assert weights[-1].abs().max() < 1e-3, "a black sample gives zero"
    assert ((weights[:-1] < 0).sum(0) == SIZE // 2).all()
    assert outputs.shape == (64, 20)


@pytest.mark.parametrize(
    "after",
    [(), (nn.Sigmoid(), nn.Linear(20, 10)), (nn.LeakyReLU(), nn.Linear(20, 10))],
    ids=["nothing", "sigmoid", "leaky"],
)
def test_a_layer_whose_neurons_are_never_off_is_no_trap(after: tuple[nn.Module, ...]) -> None:
    with pytest.raises(NoTrap, match="no ReLU switches the neurons of '1' off"):
        trapped(dense(*after))


@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "hidden"])
def test_dense_layers_hand_on_to_a_later_wider_one(hidden: bool) -> None:
    model = BoenischFc(widths=(250, 220, 600)).build(SHAPE, 10)
    made = trapped(model, layer="fc3", hidden=hidden)
    samples = torch.rand(4, *SHAPE)
    features = given(model, "fc3", samples)
    lit = (features > 0).any(0)
    assert lit.sum() == SIZE
    if hidden:
        scale = features[:, lit].amax(0)
        assert len(scale.unique()) > SIZE / 2
        assert not torch.equal(lit, torch.arange(220) < SIZE)
        for name in ("fc1.weight", "fc2.weight"):
            rows = (made[name] > 0).sum(1)
            assert (made[name] < 0).any(), "fillers are negative"
            assert rows.max() >= 1
    else:
        torch.testing.assert_close(features[:, lit], samples.flatten(1))
    assert ((made["fc3.weight"][:, lit] > 0).sum(1) == SIZE // 2).all()


def narrow() -> nn.Module:
    return BoenischFc(widths=(100, 300)).build(SHAPE, 10)


def pooled(pool: nn.Module) -> nn.Module:
    """Filters for every pixel of any window there are: that is not what is missing."""
    return nn.Sequential(
        nn.Conv2d(3, 99, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(9), nn.ReLU()
    )


def batch_normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=1), nn.BatchNorm2d(9), nn.Flatten(), nn.Linear(576, 9)
    )


class PoolsByFunction(nn.Module):
    """No module stands for what loses the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.fc = nn.Linear(192, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(nn.functional.max_pool2d(self.conv(x).relu(), 2).flatten(1)).relu()


LARGEST = (
    r"lost at '2', MaxPool2d\(.*\): it hands on the largest pixel of each window, and which one "
    "that is depends on the sample; a pixel that is the largest of no window is lost, also where "
    "windows overlap"
)
MEAN = "it hands on the mean of each window, and no pixel of it by itself"


@pytest.mark.parametrize(
    ("model", "settings", "reason"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten()), {}, "needs? a dense layer"),
        (narrow, {"layer": "fc2"}, "'fc1': the layer has 100 neurons for 192 pixels"),
        (narrow, {"layer": "fc9"}, r"there are: fc1, fc2, fc3\. Did you mean"),
        (lambda: cnn(9, 2), {}, "'conv2': the layer has 2 filters, and passing on 3 channels"),
        (lambda: cnn(11, stride=2), {}, "has 11 filters, .* takes 4 for each"),
        (lambda: cnn(99, stride=3, kernel=1), {}, "never sees 5 of 8 rows or columns"),
        (lambda: pooled(nn.MaxPool2d(2)), {}, LARGEST),
        (lambda: pooled(nn.MaxPool2d(3, stride=1, padding=1)), {}, LARGEST),
        (lambda: pooled(nn.MaxPool2d(2, stride=1)), {}, LARGEST),
        (lambda: pooled(nn.MaxPool2d(1, stride=2)), {}, "its stride steps over the others"),
        (lambda: pooled(nn.AvgPool2d(2)), {}, rf"lost at '2', AvgPool2d\(.*\): {MEAN}"),
        (lambda: pooled(nn.AvgPool2d(3, stride=1, padding=1)), {}, MEAN),
        (lambda: pooled(nn.AdaptiveAvgPool2d(4)), {}, MEAN),
        (PoolsByFunction, {}, "lost between 'conv' and 'fc': pixels do not arrive"),
        (lambda: ByKeyword(nn.MaxPool2d(3, 1, 1)), {}, "lost between 'conv' and 'last'"),
        (batch_normed, {}, "lost at '1', BatchNorm2d"),
        (lambda: LeNetDlg().build(SHAPE, 10), {}, r"lost at 'act1', Sigmoid\(\): behind it pixels"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 9, bias=False)),
            {},
            "need a bias in the dense layer",
        ),
    ],
    ids=[
        "no dense layer", "too few neurons", "unknown layer", "too few filters",
        "too few for the stride", "stride beyond the kernel", "max-pooling",
        "overlapping max-pooling that keeps the size", "overlapping max-pooling",
        "max-pooling that leaves out", "average pooling", "overlapping average pooling",
        "adaptive average pooling", "a function that pools", "by keyword", "batch norm",
        "sigmoid", "no bias",
    ],
)  # fmt: skip
def test_a_sample_that_gets_lost_is_refused_with_the_place(
    model: Any, settings: dict[str, Any], reason: str
) -> None:
    made = model()
    made(torch.zeros(1, *SHAPE))  # what is lazy sees its size
    with pytest.raises(NoTrap, match=reason):
        trapped(made, **settings)


def test_lenet_pools_and_has_too_few_filters() -> None:
    with pytest.raises(NoTrap, match="'conv1'"):
        trapped(LeNet().build((3, 32, 32), 10), (3, 32, 32))


def test_nothing_given_is_changed() -> None:
    model = BoenischCnn(channels=(4,), width=9).build(SHAPE, 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    set_trap(
        model, model.state_dict(), True, SHAPE, scaling=0.9, sigma=0.1, rng=np.random.default_rng(0)
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
