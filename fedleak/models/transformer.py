"""A small transformer that classifies texts."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fedleak.models.architecture import Architecture, text_length
from fedleak.models.mlp import ACTIVATIONS, Activation


class _Positions(nn.Module):
    """Adds to each place of a text its own sines and cosines.

    They are constants of the architecture and never travel.
    """

    waves: Tensor

    def __init__(self, length: int, dimension: int) -> None:
        super().__init__()
        place = torch.arange(length)[:, None]
        column = torch.arange(dimension)
        angle = place / 10_000 ** (2 * (column // 2) / dimension)
        waves = torch.where(column % 2 == 0, angle.sin(), angle.cos())
        self.register_buffer("waves", waves, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.waves


class _Attention(nn.Module):
    """Multi-head self-attention of plain products and softmax.

    torch's fused attention has no second derivative in its fast forms, and gradient
    inversion needs one.
    """

    def __init__(self, dimension: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dimension, dimension)
        self.key = nn.Linear(dimension, dimension)
        self.value = nn.Linear(dimension, dimension)
        self.out = nn.Linear(dimension, dimension)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(-1)
        mixed: Tensor = self.out((weights @ value).transpose(1, 2).flatten(-2))
        return mixed


class _Block(nn.Module):
    """Attention and a dense layer for each token, both normalised before and added."""

    def __init__(self, dimension: int, heads: int, width: int, activation: Activation) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dimension)
        self.attention = _Attention(dimension, heads)
        self.norm2 = nn.LayerNorm(dimension)
        self.fc1 = nn.Linear(dimension, width)
        self.act = ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(width, dimension)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        mixed: Tensor = x + self.fc2(self.act(self.fc1(self.norm2(x))))
        return mixed


class _MeanOverTokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class TextTransformer(Architecture):
    """An encoder of attention blocks over embedded tokens, their mean, one dense layer.

    Vaswani et al. 2017, with its positions, and normalisation before each part (Xiong et al.
    2020). Padding counts as a token like any other.
    """

    kind: Literal["text-transformer"] = "text-transformer"
    tokens: int = Field(
        10_000, ge=2, le=10_000_000, description="tokens there are, at least those of the data"
    )
    dimension: int = Field(64, ge=1, le=10_000, description="size of a token's embedding")
    heads: int = Field(4, ge=1, le=1000, description="attention heads; a divisor of dimension")
    blocks: int = Field(2, ge=1, le=100, description="attention blocks")
    width: int = Field(128, ge=1, le=100_000, description="neurons of a block's hidden layer")
    activation: Activation = Field("gelu", description="of a block's hidden layer")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dimension % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide dimension ({self.dimension})")
        return self

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Make the network for texts ``(length,)``.

        Raises:
            ScenarioError: The samples are not texts.
        """
        length = text_length(input_shape, self.kind)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["embedding"] = nn.Embedding(self.tokens, self.dimension)
        layers["positions"] = _Positions(length, self.dimension)
        for number in range(1, self.blocks + 1):
            layers[f"block{number}"] = _Block(
                self.dimension, self.heads, self.width, self.activation
            )
        layers["norm"] = nn.LayerNorm(self.dimension)
        layers["mean"] = _MeanOverTokens()
        layers["fc"] = nn.Linear(self.dimension, classes)
        return nn.Sequential(layers)
