"""ReLU and max pooling with slopes that change gradually, for searches across their kinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_RELUS = {functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, functional.relu_}
_MAX_POOLS = {functional.max_pool2d, torch.max_pool2d}


class SoftGates(TorchFunctionMode):
    """Inside this context, the gates of ReLU and max pooling open gradually.

    An update hangs on which gates are open: ReLU passes a slope or none, max pooling
    passes all of it to one of its inputs. Where an input crosses a kink the update jumps,
    so a search that goes downhill never learns which gates are wrong, and stops where all
    of them are merely consistent. Here values stay as they are, but slopes are those of
    softplus and of log-sum-exp, as surrogate gradients are for spiking networks (Neftci,
    Mostafa, Zenke, IEEE Signal Processing Magazine 36, 2019), and so the update depends on
    each gate's input continuously. A search lowers the temperature until the update is the
    network's own.

    ReLU and two-dimensional max pooling are met as modules and as functions; pooling that
    returns indices keeps its slopes.
    """

    def __init__(self, temperature: float) -> None:
        """Soften.

        Args:
            temperature: Width of a gate, > 0, in standard deviations of what one sample
                gives to the layer.
        """
        super().__init__()
        self._temperature = temperature

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in _RELUS:
            return self._relu(args[0] if args else kwargs["input"])
        value = function(*args, **kwargs)
        if function in _MAX_POOLS:
            return self._max_pool(value, *args, **kwargs)
        return value

    def _relu(self, inputs: Tensor) -> Tensor:
        width = self._width(inputs)
        soft = width * functional.softplus(inputs / width)
        return soft + (inputs.clamp(min=0) - soft).detach()

    def _max_pool(
        self,
        value: Tensor,
        input: Tensor,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        # Without a stride, torch hands on None or an empty sequence.
        strides, dilations = _pair(stride or kernel_size), _pair(dilation)
        before, sizes = _pair(padding), _pair(kernel_size)
        # From each window's first entry to its last, and from the first window to the last.
        reach = [(size - 1) * apart for size, apart in zip(sizes, dilations, strict=True)]
        span = [(n - 1) * step + 1 for n, step in zip(value.shape[-2:], strides, strict=True)]
        # What is padded before, and as much after as the last window needs.
        above, beside = before
        below, behind = (
            max(0, there + far - size - at)
            for there, far, size, at in zip(span, reach, input.shape[-2:], before, strict=True)
        )
        padded = functional.pad(input, (beside, behind, above, below), value=-torch.inf)
        # The n-th entries of all windows are a slice: there are as many as in one window.
        entries = [
            padded[..., row : row + span[0] : strides[0], column : column + span[1] : strides[1]]
            for row in range(0, reach[0] + 1, dilations[0])
            for column in range(0, reach[1] + 1, dilations[1])
        ]
        scale = self._width(input)
        soft = scale * torch.logsumexp(torch.stack(entries) / scale, 0)
        return soft + (value - soft).detach()

    def _width(self, inputs: Tensor) -> Tensor:
        """The temperature in the layer's own units, for each sample."""
        deviation = inputs.detach().flatten(1).std(1).clamp(min=torch.finfo(inputs.dtype).tiny)
        return self._temperature * deviation.reshape(-1, *[1] * (inputs.dim() - 1))


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = (*value, *value)[:2]
    return first, second
