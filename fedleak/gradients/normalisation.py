"""Normalisation layers from elementary operations, so that every derivative is right.

PyTorch's fused batch, layer, group and instance norm treat the saved mean and inverse
deviation as constants in some of their higher derivatives: under `torch.func.vmap`
already in the second (an error of about one percent, without a warning), elsewhere
from the third on (pytorch/pytorch issues 186256 and 196699). Inverting an update needs
exactly those derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class ElementaryNormalisation(TorchFunctionMode):
    """While active, normalisation is computed from elementary operations.

    It holds for the layers of `torch.nn` and for calls of `torch.nn.functional` alike.
    Running statistics are read where a layer asks for them and never written.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        call: Callable[..., Any] = ELEMENTARY.get(func, func)
        return call(*args, **(kwargs or {}))


def _standardise(values: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = values - values.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _per_channel(vector: Tensor, values: Tensor) -> Tensor:
    """View ``(C,)``, or ``(n, C)`` with one row per sample, to broadcast over ``(n, C, ...)``."""
    return vector.reshape(*vector.shape, *[1] * (values.dim() - 2))


def _affine(values: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        values = values * weight
    return values if bias is None else values + bias


def _channel_affine(values: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return _affine(
        values,
        None if weight is None else _per_channel(weight, values),
        None if bias is None else _per_channel(bias, values),
    )


def _batch_norm(
    values: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    candidates: int = 1,
) -> Tensor:
    """With several candidates in the batch, each is normalised by its own statistics."""
    if training or running_mean is None or running_var is None:
        apart = torch.unflatten(values, 0, (candidates, -1))
        values = _standardise(apart, (1, *range(3, apart.dim())), eps).flatten(0, 1)
    else:
        # One scale and one shift per channel, whatever they are made of.
        scale = (running_var + eps).rsqrt()
        weight = scale if weight is None else weight * scale
        bias = -running_mean * weight if bias is None else bias - running_mean * weight
    return _channel_affine(values, weight, bias)


def _instance_norm(
    values: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return _batch_norm(values, running_mean, running_var, weight, bias, eps=eps)
    values = _standardise(values, tuple(range(2, values.dim())), eps)
    return _channel_affine(values, weight, bias)


def _group_norm(
    values: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    groups = values.reshape(len(values), num_groups, -1)
    return _channel_affine(_standardise(groups, (2,), eps).reshape(values.shape), weight, bias)


def _layer_norm(
    values: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))

    def spread(tensor: Tensor | None) -> Tensor | None:
        """One row per sample holds for all that the sample has in the dimensions between."""
        if tensor is None or tensor.dim() == len(dims):
            return tensor
        return tensor.reshape(len(values), *[1] * (values.dim() - tensor.dim()), *tensor.shape[1:])

    return _affine(_standardise(values, dims, eps), spread(weight), spread(bias))


ELEMENTARY: dict[Callable[..., Any], Callable[..., Tensor]] = {
    functional.batch_norm: _batch_norm,
    functional.instance_norm: _instance_norm,
    functional.group_norm: _group_norm,
    functional.layer_norm: _layer_norm,
}
"""What stands in for which function. Scale and shift may have one row per sample in front."""
