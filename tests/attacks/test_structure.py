from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks.structure import final_dense, input_dense, probe

SHAPE = (3, 4, 5)
SIZE = 60


class Normalise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.25]))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean[:, None, None]) / self.std[:, None, None]


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


def seen_batch_norm() -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(3)
    layer.running_mean = torch.tensor([0.1, 0.2, 0.3])
    layer.running_var = torch.tensor([0.5, 0.6, 0.7])
    return layer


PASS_ON = {
    "flattened": lambda: (nn.Flatten(),),
    "normalised": lambda: (Normalise(), nn.Flatten()),
    "channels last": lambda: (Normalise(), ChannelsLast(), nn.Flatten()),
    "dropout": lambda: (nn.Flatten(), nn.Dropout()),
    "rectified, which changes no pixel": lambda: (nn.ReLU(), nn.Flatten()),
    "batch norm by running statistics": lambda: (seen_batch_norm(), nn.Flatten()),
}


@pytest.mark.parametrize("name", PASS_ON)
def test_what_the_dense_layer_sees_is_undone_exactly(name: str) -> None:
    torch.manual_seed(0)
    before = nn.Sequential(*PASS_ON[name]()).double().eval()
    # A dense layer that comes first in the model but not first in its work.
    model = nn.ModuleDict({"side": nn.Linear(8, 8), "before": before})

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.aside = nn.Linear(8, 10)
            self.before = model["before"]
            self.first = nn.Linear(SIZE, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.aside(self.first(self.before(x)).relu())

    layer = input_dense(Network(), {}, False, SHAPE)
    assert layer is not None
    assert layer.name == "first"
    samples = torch.rand(2, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(
        layer.pixels(before(samples).reshape(2, SIZE)[:, layer.carrier]).reshape(samples.shape),
        samples,
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("before", "train_mode"),
    [
        ((nn.Conv2d(3, 3, 3, padding=1), nn.Flatten()), True),
        ((nn.Sigmoid(), nn.Flatten()), True),
        ((nn.BatchNorm2d(3), nn.Flatten()), True),
        ((nn.Flatten(), nn.LayerNorm(SIZE)), False),
        ((nn.Conv2d(3, 15, 2, stride=2, padding=1), nn.Flatten(), nn.LazyLinear(SIZE)), True),
    ],
    ids=["convolution", "sigmoid", "batch statistics", "layer norm", "dense in between"],
)
def test_a_layer_that_sees_something_else_is_not_taken(
    before: tuple[nn.Module, ...], train_mode: bool
) -> None:
    model = nn.Sequential(*before, nn.Linear(SIZE, 10))
    model.eval()(torch.rand(2, *SHAPE))
    assert input_dense(model, {}, train_mode, SHAPE) is None


def test_running_statistics_that_were_sent_count_and_not_the_model_s_own() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(SIZE, 10))
    sent = {"0.running_mean": torch.full((3,), 0.25), "0.running_var": torch.full((3,), 4.0)}
    layer = input_dense(model, sent, False, SHAPE)
    assert layer is not None
    scale = (4 + 1e-5) ** -0.5
    rounding = {"rtol": 1e-6, "atol": 0.0}
    torch.testing.assert_close(layer.scale, torch.full((SIZE,), scale).double(), **rounding)
    shift = torch.full((SIZE,), -0.25 * scale).double()
    torch.testing.assert_close(layer.shift, shift, **rounding)


def test_a_pixel_among_other_features_is_found_where_it_is() -> None:
    """Scaled, shifted and in any place, among copies, sums and noise."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(1)
            self.place = torch.randperm(2 * SIZE, generator=generator)
            self.scale = 0.1 + torch.rand(SIZE, generator=generator)
            self.noise = torch.randn(SIZE, SIZE, generator=generator)
            self.first = nn.Linear(2 * SIZE, 8)

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            both = torch.cat([3 - self.scale.to(x) * flat, flat @ self.noise.to(x)], 1)
            return self.first(both[:, self.place])

    model = Mixed()
    layer = input_dense(model, {}, True, SHAPE)
    assert layer is not None and layer.name == "first"
    # Where feature j of the two halves went.
    where = model.place.argsort()[:SIZE]
    assert torch.equal(layer.carrier, where)
    torch.testing.assert_close(layer.scale, -model.scale.double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(layer.shift, torch.full((SIZE,), 3.0).double())


def test_one_pixel_that_is_missing_is_not_overlooked() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(SIZE, 8)

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1).clone()
            flat[:, 7] = flat[:, 8]
            return self.first(flat)

    assert input_dense(Dropped(), {}, True, SHAPE) is None


def test_the_layer_to_which_others_pass_the_input_is_the_one() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, SIZE), nn.ReLU(), nn.Linear(SIZE, 10))
    assert input_dense(model, {}, True, SHAPE).name == "1"
    sent = {"1.weight": torch.eye(SIZE).flip(0), "1.bias": torch.zeros(SIZE)}
    layer = input_dense(model, sent, True, SHAPE)
    assert layer is not None and layer.name == "3"
    assert torch.equal(layer.carrier, torch.arange(SIZE).flip(0))


def test_the_final_dense_layer_is_the_one_whose_output_comes_out() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(7, 10)
            self.body = nn.Linear(SIZE, 7)
            self.auxiliary = nn.Linear(7, 10)

        def forward(self, x: Tensor) -> Tensor:
            features = self.body(x.flatten(1))
            self.auxiliary(features)
            return self.head(features)

    assert final_dense(probe(Network(), {}, True, torch.rand(3, *SHAPE))) == "head"
    scaled = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 10), nn.LogSoftmax(1))
    for last in (nn.Linear(10, 10), nn.ReLU(inplace=True)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 10), last)
        expected = "2" if isinstance(last, nn.Linear) else None
        assert final_dense(probe(model, {}, True, torch.rand(3, *SHAPE))) == expected
    assert final_dense(probe(scaled, {}, True, torch.rand(3, *SHAPE))) is None
