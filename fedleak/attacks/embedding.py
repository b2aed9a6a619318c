"""Models that take texts, seen from behind their embedding: from there on they take numbers."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedleak.records import Observation

_AT_A_TIME = 4096


@dataclass(frozen=True)
class BehindEmbedding:
    """A model without the embedding that its tokens enter.

    Attributes:
        name: Name of the `torch.nn.Embedding`.
        model: The rest, which takes ``(n, length, dimension)``; its tensors are those of
            the whole.
        input_shape: ``(length, dimension)``.
    """

    name: str
    model: nn.Module
    input_shape: tuple[int, int]

    @property
    def weight(self) -> str:
        """Name of the embedding's weight."""
        return f"{self.name}.weight"

    def observation(self, whole: Observation) -> Observation:
        """The same observation of the rest of the model."""
        return replace(
            whole,
            model=self.model,
            input_shape=self.input_shape,
            parameters={n: v for n, v in whole.parameters.items() if n != self.weight},
            update={n: v for n, v in whole.update.items() if n != self.weight},
        )


def behind_embedding(model: nn.Module, input_shape: tuple[int, ...]) -> BehindEmbedding | None:
    """Find the embedding that a model's tokens ``(n, length)`` enter; None if it takes none.

    It is found by watching the model take texts, not by its name or place.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    if not layers or len(input_shape) != 1:
        return None
    tokens = torch.arange(2 * input_shape[0]).reshape(2, -1)
    tokens = tokens % min(layer.num_embeddings for layer in layers.values())
    entered: list[str] = []
    network = _sharing(model).eval()

    def watch(name: str) -> None:
        def note(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if arguments[0].shape == tokens.shape and torch.equal(arguments[0], tokens):
                entered.append(name)

        network.get_submodule(name).register_forward_pre_hook(note)

    for name in layers:
        watch(name)
    try:
        with torch.no_grad():
            network(tokens.to(next(network.parameters()).device))
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
    if len(entered) != 1:
        return None
    rest = _sharing(model)
    parent, _, child = entered[0].rpartition(".")
    setattr(rest.get_submodule(parent), child, nn.Identity())
    return BehindEmbedding(entered[0], rest, (input_shape[0], layers[entered[0]].embedding_dim))


def nearest_tokens(vectors: Tensor, weight: Tensor) -> Tensor:
    """The tokens whose embeddings are nearest: ``(m, length, dimension)`` to ``(m, length)``.

    Args:
        vectors: What was taken for embeddings.
        weight: The embedding's weight, ``(tokens, dimension)``.
    """
    flat = vectors.flatten(0, 1).to(weight)
    squares = weight.square().sum(1)
    found = [
        # Of the squared distance, what differs from token to token.
        (squares - 2 * part @ weight.T).argmin(1)
        for part in torch.split(flat, _AT_A_TIME)
    ]
    tokens = torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
    return tokens.reshape(vectors.shape[:2])


def _sharing(model: nn.Module) -> nn.Module:
    """A copy with the very same tensors."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
