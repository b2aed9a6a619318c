from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.signal import correlate2d
from torch import nn

from fedleak.attacks.embedding import behind_embedding
from fedleak.errors import ScenarioError
from fedleak.gradients import UpdateMap
from fedleak.models import MODELS, Architecture
from fedleak.models.boenisch import BoenischCnn, BoenischFc
from fedleak.models.lenet import LeNet, LeNetDlg
from fedleak.models.mlp import Mlp
from fedleak.models.mo import VGG9, AlexNet, TextClf
from fedleak.models.resnet18 import ResNet18
from fedleak.models.text import BoenischText
from fedleak.models.transformer import TextTransformer
from fedleak.records import TrainingFacts

GREY, COLOUR, FACE = (1, 28, 28), (3, 32, 32), (3, 62, 47)
ALEX = 608 + 1168 + 4640 + 2 * 9248
VGG = 224 + 1168 + 2320 + 4640 + 2 * 9248


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
        # Mo et al., Table III: the rows of the last map, after 62x47, 64x64 and 100x100, are
        # LeNet 12x8, 13x13, 22x22; AlexNet and VGG9 11x7, 11x11, 20x20, and 3x3 after 32x32.
        (LeNet(), FACE, 2, 456 + 2416 + 16 * 96 * 120 + 120 + 10_164 + 170),
        (LeNet(), (3, 64, 64), 2, 456 + 2416 + 16 * 169 * 120 + 120 + 10_164 + 170),
        (LeNet(), (3, 100, 100), 2, 456 + 2416 + 16 * 484 * 120 + 120 + 10_164 + 170),
        # 8*3*25+8, 16*8*9+16, 32*16*9+32, twice 32*32*9+32; 120*84+84; 84*100+100
        (AlexNet(), COLOUR, 100, ALEX + 32 * 9 * 120 + 120 + 10_164 + 8500),
        (AlexNet(), FACE, 2, ALEX + 32 * 77 * 120 + 120 + 10_164 + 170),
        (AlexNet(), (3, 64, 64), 2, ALEX + 32 * 121 * 120 + 120 + 10_164 + 170),
        (AlexNet(), (3, 100, 100), 83, ALEX + 32 * 400 * 120 + 120 + 10_164 + 7055),
        # 8*3*9+8, 16*8*9+16, 16*16*9+16, then as above; 256*128+128; 128*100+100
        (VGG9(), COLOUR, 100, VGG + 32 * 9 * 256 + 256 + 32_896 + 12_900),
        (VGG9(), FACE, 2, VGG + 32 * 77 * 256 + 256 + 32_896 + 258),
        (VGG9(), (3, 64, 64), 2, VGG + 32 * 121 * 256 + 256 + 32_896 + 258),
        (VGG9(), (3, 100, 100), 83, VGG + 32 * 400 * 256 + 256 + 32_896 + 10_707),
        # the smallest, 22 -> 18 -> 16 -> 8 -> 6 -> 4 -> 2 -> 1
        (AlexNet(), (1, 22, 23), 2, ALEX - 400 + 32 * 120 + 120 + 10_164 + 170),
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
    AlexNet(),
    VGG9(),
)
TEXTS = (
    BoenischText(tokens=9, dimension=4, widths=(5,)),
    TextClf(tokens=9, dimension=20),
    TextTransformer(tokens=9, dimension=8, heads=2, width=6),
)


def test_every_model_is_tested() -> None:
    assert {type(model) for model in (*SMALL, *TEXTS)} == set(MODELS)


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
    network = model.build((1, 22, 22), 3).double()
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

    candidates = torch.rand(2, 1, 22, 22, dtype=torch.float64)
    together = torch.func.vmap(torch.func.grad(gradient_norm))(candidates)
    alone = torch.stack([torch.func.grad(gradient_norm)(x) for x in candidates])
    assert together.abs().max() > 0
    assert torch.allclose(together, alone, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("model", TEXTS, ids=lambda model: model.kind)
def test_texts_are_fit_for_attacks(model: Architecture) -> None:
    """Behind their embedding: each way to many gradients gives those of single samples."""
    torch.manual_seed(0)
    whole = model.build((20,), 3).double()
    assert whole(torch.randint(0, 9, (7, 20))).shape == (7, 3)
    behind = behind_embedding(whole, (20,))
    assert behind is not None
    network = behind.model
    parameters = {n: v.detach() for n, v in network.named_parameters() if n != behind.weight}
    facts = TrainingFacts(lr=0.1, steps=1, batch_size=2, examples=2)
    candidates = torch.randn(3, 2, *behind.input_shape, dtype=torch.float64)
    labels = torch.tensor([[0, 2]] * 3)
    slopes, norms = [], []
    for batching in ("vmap", "loop", "explicit"):
        mapping = UpdateMap(network, parameters, {}, facts, batching=batching)
        inputs = candidates.clone().requires_grad_()
        update = mapping(inputs, labels)
        norm = sum(update[name].flatten(1).square().sum(1) for name in parameters)
        slopes.append(torch.autograd.grad(norm.sum(), inputs)[0])
        norms.append(norm.detach())
    assert slopes[0].abs().min(2).values.max() > 0
    for slope, norm in zip(slopes[1:], norms[1:], strict=True):
        assert torch.allclose(slope, slopes[0], rtol=1e-8, atol=1e-12)
        assert torch.allclose(norm, norms[0], rtol=1e-10)
    # Each candidate on its own, by torch's plain backward twice.
    variables = {n: v.clone().requires_grad_() for n, v in parameters.items()}
    inputs = candidates[1].clone().requires_grad_()
    logits = torch.func.functional_call(network, variables, (inputs,))
    loss = nn.functional.cross_entropy(logits, labels[1])
    gradients = torch.autograd.grad(loss, list(variables.values()), create_graph=True)
    alone = sum(g.square().sum() for g in gradients)
    assert torch.allclose(alone, norms[0][1])
    assert torch.allclose(torch.autograd.grad(alone, inputs)[0], slopes[0][1], rtol=1e-8)


@pytest.mark.parametrize("model", SMALL, ids=lambda model: model.kind)
def test_layer_names_are_words(model: Architecture) -> None:
    names = [name for name, _ in model.build((1, 22, 22), 3).named_children()]
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


def pool(x: np.ndarray, reduce: Callable[..., np.ndarray] = np.max) -> np.ndarray:
    """The 2x2 pooling of ``(C, H, W)``; what is left over at the ends is dropped."""
    channels, rows, columns = x.shape[0], x.shape[1] // 2, x.shape[2] // 2
    cut = x[:, : 2 * rows, : 2 * columns].reshape(channels, rows, 2, columns, 2)
    return reduce(cut, axis=(2, 4))


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
    x = np.random.default_rng(0).random(shape)
    hidden = pool(np.maximum(convolve(x, network.conv1), 0), reduce)
    hidden = pool(np.maximum(convolve(hidden, network.conv2), 0), reduce).ravel()
    hidden = np.maximum(dense(hidden, network.fc1), 0)
    hidden = np.maximum(dense(hidden, network.fc2), 0)
    expected = dense(hidden, network.fc3)
    actual = network(torch.from_numpy(x)[None])[0].detach().numpy()
    assert np.allclose(actual, expected, rtol=0, atol=1e-12)


def by_table(row: str, x: np.ndarray, network: nn.Module, classes: int) -> np.ndarray:
    """What a network of Mo et al., Table III, makes of ``(C, H, W)``, read from the table."""
    convolutions = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    dense_layers = (m for m in network.modules() if isinstance(m, nn.Linear))
    for letter, number, side, times in re.findall(r"([CPFO])(\d*)(?:\((\d)\))?(?:x(\d))?", row):
        if letter == "P":
            x = pool(x)
        for _ in range(int(times or 1) if letter == "C" else 0):
            layer = next(convolutions)
            assert (layer.out_channels, *layer.kernel_size) == (int(number), int(side), int(side))
            x = np.maximum(convolve(x, layer), 0)
        if letter in "FO":
            layer = next(dense_layers)
            assert layer.out_features == (classes if letter == "O" else int(number))
            x = dense(x.ravel(), layer)
            x = x if letter == "O" else np.maximum(x, 0)
    assert next(convolutions, None) is None and next(dense_layers, None) is None
    return x


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 25, 22)])
@pytest.mark.parametrize(
    ("model", "row"),
    [
        (AlexNet(), "C8(5)-C16(3)-P(2)-C32(3)x3-P(2)-F120-F84-O"),
        (VGG9(), "C8(3)-C16(3)x2-P(2)-C32(3)x3-P(2)-F256-F128-O"),
    ],
)
def test_table_iii_against_scipy(
    model: Architecture, row: str, shape: tuple[int, int, int]
) -> None:
    network = model.build(shape, 5).double()
    x = np.random.default_rng(0).random(shape)
    actual = network(torch.from_numpy(x)[None])[0].detach().numpy()
    assert np.allclose(actual, by_table(row, x, network, 5), rtol=0, atol=1e-12)


def test_textclf_against_scipy() -> None:
    network = TextClf(tokens=30, dimension=21).build((23,), 2).double()
    tokens = torch.randint(0, 30, (1, 23), generator=torch.Generator().manual_seed(0))
    x = network.embedding.weight.detach().numpy()[tokens.numpy()]
    expected = by_table("C16(3)-P(2)-C16(8)-P(2)-F50-O", x, network, 2)
    assert np.allclose(network(tokens)[0].detach().numpy(), expected, rtol=0, atol=1e-12)
    # 16*9+16, 16*16*64+16, and 250x32 leave 58x4 of 16 maps: 3712*50+50, 50*2+2
    counted = sum(p.numel() for p in TextClf().build((250,), 2).parameters())
    assert counted == 320_000 + 160 + 16_400 + 185_650 + 102


@pytest.mark.parametrize("shape", [(1, 21, 30), (3, 32, 21)])
def test_table_iii_leaves_nothing_of_small_images(
    shape: tuple[int, ...], refused: Callable[..., str]
) -> None:
    for model in (AlexNet(), VGG9()):
        assert "nothing is left of" in refused("model.kind", model.build, shape, 10)
    assert "nothing is left of 19x32" in refused("model.kind", TextClf().build, (19,), 2)
    for text in (TextClf(), TextTransformer()):
        assert "needs texts" in refused("model.kind", text.build, shape, 2)


def test_transformer_against_torchs_own() -> None:
    torch.manual_seed(0)
    model = TextTransformer(tokens=30, dimension=12, heads=3, blocks=2, width=7)
    network = model.build((5,), 4).double().eval()
    tokens = torch.randint(0, 30, (6, 5))
    place, column = np.arange(5)[:, None], np.arange(6)
    angle = place / 10_000 ** (2 * column / 12)
    waves = np.stack([np.sin(angle), np.cos(angle)], axis=2).reshape(5, 12)
    hidden = network.embedding.weight[tokens] + torch.from_numpy(waves)
    for block in (network.block1, network.block2):
        layer = nn.TransformerEncoderLayer(
            12, 3, 7, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        ).double()
        parts = block.attention.query, block.attention.key, block.attention.value
        own = {
            "self_attn.in_proj_weight": torch.cat([part.weight for part in parts]),
            "self_attn.in_proj_bias": torch.cat([part.bias for part in parts]),
        }
        renamed = {"attention.out": "self_attn.out_proj", "fc1": "linear1", "fc2": "linear2"}
        for ours, theirs in {**renamed, "norm1": "norm1", "norm2": "norm2"}.items():
            for name, value in block.get_submodule(ours).named_parameters():
                own[f"{theirs}.{name}"] = value
        layer.load_state_dict(own)
        hidden = layer(hidden)
    expected = network.fc(nn.functional.layer_norm(hidden, (12,)).mean(1))
    # The waves are float32, as the network's other values are when it is built.
    assert torch.allclose(network(tokens), expected, rtol=0, atol=1e-6)
    # 30*12; a block has twice 2*12, four 12*12+12, 12*7+7 and 7*12+12; then 2*12, 12*4+4
    blocks = 2 * (48 + 4 * 156 + 91 + 96)
    assert sum(p.numel() for p in network.parameters()) == 360 + blocks + 24 + 52


def test_heads_divide_the_dimension() -> None:
    with pytest.raises(ValidationError, match=r"heads \(3\) must divide dimension \(8\)"):
        TextTransformer(dimension=8, heads=3)


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
