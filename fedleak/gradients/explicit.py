"""Gradients of many candidates from one ordinary pass through the network.

Candidates of a single local step share the weights, so their samples can pass through
the network together, as one batch of ``R * b``. Each candidate's gradient then follows
from every layer's inputs and output gradients: outer products for a dense layer
(Goodfellow 2015, arXiv:1510.01799), the same over patches for a convolution (Rochette
et al. 2019, arXiv:1912.06015).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fedleak.gradients.factored import FactoredUpdate, OuterProducts
from fedleak.gradients.normalisation import ELEMENTARY

Loss = Callable[..., Tensor]
"""As the losses of `torch.nn.functional`: of logits ``(n, K)`` and labels ``(n,)``, with
``reduction`` "mean" or "sum"."""

_DENSE = functional.linear
_CONVOLUTION = functional.conv2d


class NotExplicit(RuntimeError):
    """The network uses a parameter in a way for which there is no rule here."""


class ExplicitGradients:
    """Gradients of the mean loss, one for each candidate.

    There are rules for dense layers, two-dimensional convolutions and the scale and
    shift of normalisation layers, as modules or as functions, used once or often.
    Samples must not meet in the network other than in a batch norm, which is confined to
    its candidate. A network that mixes them otherwise gets wrong gradients here.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        parameters: Mapping[str, Tensor],
        loss: Loss = functional.cross_entropy,
    ) -> None:
        """Fix everything but the candidates.

        Args:
            network: Takes ``(n, *input)``, gives logits ``(n, K)``.
            parameters: Those whose gradients are wanted, by name; the very tensors that
                the network uses.
            loss: Of logits and labels.
        """
        self._network = network
        self._parameters = parameters
        self._loss = loss
        self._surveys: dict[torch.Size, _Pass] = {}

    def __call__(self, inputs: Tensor, labels: Tensor) -> FactoredUpdate:
        """One gradient per candidate, differentiable in inputs and labels.

        Args:
            inputs: ``(R, b, *input)``.
            labels: ``(R, b)`` int64 or ``(R, b, K)`` class probabilities.

        Raises:
            NotExplicit: There is no rule for what the network does with a parameter.
        """
        candidates, size = inputs.shape[:2]
        survey = self._survey(inputs)
        # The parameters are everybody's, so the gradients are those of stand-ins: a zero
        # added to each layer's output, and a copy per candidate of each scale and shift.
        zero = torch.zeros((), dtype=inputs.dtype, device=inputs.device)
        zeros = [zero.expand(layer.output) for layer in survey.layers]
        copies = {
            name: self._parameters[name].expand(candidates, *self._parameters[name].shape)
            for name in survey.copied
        }

        def loss(zeros: list[Tensor], copies: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
            run = _Pass(self._parameters, candidates, size, zeros, copies)
            with run:
                logits = self._network(inputs.flatten(0, 1))
            total = self._loss(logits, labels.flatten(0, 1), reduction="sum")
            return total / size, run.entered

        (slopes, copied), entered = grad(loss, argnums=(0, 1), has_aux=True)(zeros, copies)
        parts: dict[str, list[Tensor | OuterProducts]] = {name: [] for name in self._parameters}
        for name, gradient in copied.items():
            parts[name].append(gradient)
        for layer, values, slope in zip(survey.layers, entered, slopes, strict=True):
            for name, part in layer.gradients(values, slope, candidates):
                parts[name].append(part)
        return FactoredUpdate(parts)

    def _survey(self, inputs: Tensor) -> _Pass:
        """A pass that only looks which layers there are, once per shape of inputs."""
        if inputs.shape not in self._surveys:
            survey = _Pass(self._parameters, *inputs.shape[:2])
            with torch.no_grad(), survey:
                self._network(inputs.new_zeros(inputs.shape).flatten(0, 1))
            seen = {name for layer in survey.layers for name in (layer.weight, layer.bias)}
            for name in self._parameters:
                if name not in seen and name not in survey.copied:
                    raise NotExplicit(f"the network was not seen to use {name!r}")
            survey.entered.clear()
            self._surveys[inputs.shape] = survey
        return self._surveys[inputs.shape]


@dataclass(frozen=True)
class _Layer:
    """One use of a dense layer or a convolution.

    Attributes:
        weight: Name of its weight; None where that gradient is not wanted.
        bias: Name of its bias, likewise.
        output: Shape of what it gives, samples first.
        channel: Which dimension of it has the outputs of one position.
        rule: The weight's gradients from what entered, ``(R, b, ...)``, and the gradient
            at the output, ``(R, b, ...)``.
    """

    weight: str | None
    bias: str | None
    output: torch.Size
    channel: int
    rule: Callable[[Tensor, Tensor], Tensor | OuterProducts]

    def gradients(
        self, values: Tensor, slope: Tensor, candidates: int
    ) -> Iterator[tuple[str, Tensor | OuterProducts]]:
        """By name, from what entered and the gradient at the output, samples first."""
        values, slope = (torch.unflatten(x, 0, (candidates, -1)) for x in (values, slope))
        if self.weight is not None:
            yield self.weight, self.rule(values, slope)
        if self.bias is not None:
            yield self.bias, slope.movedim(self.channel + 1, 1).flatten(2).sum(2)


class _Pass(TorchFunctionMode):
    """Watches one pass of all samples through the network.

    Attributes:
        layers: The uses of dense layers and convolutions, in their order.
        entered: What entered each of them, samples first.
        copied: Names of the parameters that scale or shift a normalised value.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        candidates: int,
        samples: int,
        zeros: list[Tensor] | None = None,
        copies: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.layers: list[_Layer] = []
        self.entered: list[Tensor] = []
        self.copied: dict[str, None] = {}
        self._names = {id(value): name for name, value in parameters.items()}
        self._candidates = candidates
        self._samples = samples
        self._zeros = zeros
        self._copies = copies

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is _DENSE:
            return self._dense(*args, **kwargs)
        if func is _CONVOLUTION:
            return self._convolution(*args, **kwargs)
        if func in ELEMENTARY:
            return self._normalisation(func, *args, **kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            for value in tree_leaves((args, kwargs)):
                if self._name(value) is not None:
                    raise NotExplicit(f"no rule for {func} of {self._name(value)!r}")
        return result

    def _name(self, value: object) -> str | None:
        return self._names.get(id(value))

    def _dense(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        output = functional.linear(input, weight, bias)

        def rule(values: Tensor, slope: Tensor) -> OuterProducts:
            return OuterProducts(slope.flatten(1, -2), values.flatten(1, -2), weight.shape)

        return self._layer(input, weight, bias, output, output.dim() - 1, rule)

    def _convolution(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        output = functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
        if isinstance(padding, str):
            raise NotExplicit(f"no rule for a convolution with padding {padding!r}")
        window = _Window(weight.shape, _pair(stride), _pair(padding), _pair(dilation), groups)
        positions = self._samples * output[0, 0].numel()
        columns = weight[0].numel()
        # Patches hold each input many times over: worth it where the gradient need not be
        # made of them, and on a GPU, where convolutions of many groups are slow.
        small = positions * (len(weight) + columns) < len(weight) * columns
        patches = small or input.device.type != "cpu"
        rule = window.by_patches if patches else window.by_groups
        return self._layer(input, weight, bias, output, 1, rule)

    def _layer(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        output: Tensor,
        channel: int,
        rule: Callable[[Tensor, Tensor], Tensor | OuterProducts],
    ) -> Tensor:
        names = self._name(weight), self._name(bias)
        if names == (None, None):
            return output
        self.entered.append(input)
        if self._zeros is None:
            self.layers.append(_Layer(*names, output.shape, channel, rule))
            return output
        return output + self._zeros[len(self.entered) - 1]

    def _normalisation(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        elementary = ELEMENTARY[func]
        told = inspect.signature(elementary).bind(*args, **kwargs).arguments
        for option in ("weight", "bias"):
            told[option] = self._per_sample(told.get(option))
        if func is functional.batch_norm:
            told["candidates"] = self._candidates
        return elementary(**told)

    def _per_sample(self, parameter: Tensor | None) -> Tensor | None:
        name = self._name(parameter)
        if name is None:
            return parameter
        self.copied[name] = None
        if self._copies is None:
            return parameter
        copies = self._copies[name]
        return copies[:, None].expand(-1, self._samples, *copies.shape[1:]).flatten(0, 1)


@dataclass(frozen=True)
class _Window:
    """What a convolution sees, and the two ways to its weight's gradients."""

    weight: torch.Size
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def by_groups(self, values: Tensor, slope: Tensor) -> Tensor:
        """One convolution in which each candidate is a group of its own."""
        candidates = len(values)
        shape = (candidates * self.weight[0], *self.weight[1:])
        _, gradient, _ = torch.ops.aten.convolution_backward(
            slope.transpose(0, 1).flatten(1, 2),
            values.transpose(0, 1).flatten(1, 2),
            values.new_empty(()).expand(shape),
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0, 0),
            candidates * self.groups,
            (False, True, False),
        )
        return cast(Tensor, gradient).reshape(candidates, *self.weight)

    def by_patches(self, values: Tensor, slope: Tensor) -> Tensor | OuterProducts:
        """Products of the slopes with the patches under them."""
        patches = functional.unfold(
            values.flatten(0, 1), self.weight[2:], self.dilation, self.padding, self.stride
        )
        patches, slope = patches.reshape(*slope.shape[:2], *patches.shape[1:]), slope.flatten(3)
        if self.groups == 1:
            left, right = (x.transpose(2, 3).flatten(1, 2) for x in (slope, patches))
            return OuterProducts(left, right, self.weight)
        left, right = (
            x.reshape(*x.shape[:2], self.groups, -1, x.shape[3]) for x in (slope, patches)
        )
        return torch.einsum("rbgol,rbgil->rgoi", left, right).reshape(-1, *self.weight)


def _pair(option: Any) -> tuple[int, int]:
    first, *rest = (option,) if isinstance(option, int) else option
    return (first, *rest) if rest else (first, first)
