"""Values that are computed again when they are differentiated, to save memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]


def recomputed(function: Function, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The values of a function whose graph is made only for the time of a backward pass.

    Works with `torch.autograd.grad`, whose result can be differentiated again. (PyTorch's
    own checkpointing works with `torch.func` transforms inside the function or with
    ``create_graph``, not with both.)

    Args:
        function: Of tensors alone; gives the same each time.
        tensors: Its arguments.
    """
    return cast(tuple[Tensor, ...], _Recomputed.apply(function, *tensors))


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Function, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        _, *needed = ctx.needs_input_grad
        wanted = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            values = ctx.function(*tensors)
            gradients = iter(
                torch.autograd.grad(
                    values, wanted, cotangents, create_graph=again, allow_unused=True
                )
            )
        return None, *(next(gradients) if need else None for need in needed)
