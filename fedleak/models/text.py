"""The text classifier of Boenisch et al., When the Curious Abandon Honesty, Table 8."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from pydantic import Field
from torch import nn

from fedleak.models.architecture import Architecture, text_length
from fedleak.models.mlp import Width, dense_layers


class BoenischText(Architecture):
    """An embedding of each token, and dense layers with ReLU on all of them side by side.

    Embeddings begin uniform in [0, 1], as §8 has it. The table's network ends in one
    neuron for two classes; this one, as all here, has one output per class.
    """

    kind: Literal["boenisch-text"] = "boenisch-text"
    tokens: int = Field(
        10_000, ge=2, le=10_000_000, description="tokens there are, at least those of the data"
    )
    dimension: int = Field(250, ge=1, le=100_000, description="size of a token's embedding")
    widths: tuple[Width, ...] = Field(
        (1000,), min_length=1, max_length=100, description="neurons of each hidden layer"
    )

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Make the network for texts ``(length,)``.

        Raises:
            ScenarioError: The samples are not texts.
        """
        length = text_length(input_shape, self.kind)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["embedding"] = embedding = nn.Embedding(self.tokens, self.dimension)
        nn.init.uniform_(embedding.weight)
        dense = dense_layers(length * self.dimension, self.widths, classes)
        return nn.Sequential(layers | dense)
