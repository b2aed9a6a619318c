"""Replaying a candidate: what it alone would have left at a neuron."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.forward_ad import dual_level
from torch.func import functional_call
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from fedleak.attacks.structure import network_without
from fedleak.records import Observation


@dataclass(frozen=True)
class Replay:
    """Candidates passed through the model that was sent.

    Attributes:
        shares: ``(m, K)``, the bias gradient of each candidate's neuron that the
            candidate alone would give with each label.
        spread: ``(m,)``, the range that these can have.
    """

    shares: Tensor
    spread: Tensor


def replayable(observation: Observation) -> bool:
    """Whether a sample's gradient depends on nothing that is not known.

    It does where the client took several steps, drew dropout masks or normalised by the
    statistics of its batches.
    """
    training = observation.facts.train_mode
    unknown = any(
        (isinstance(module, _DropoutNd) and module.p > 0) or isinstance(module, _NormBase)
        for module in observation.model.modules()
    )
    return observation.facts.steps == 1 and not (training and unknown)


def replay(observation: Observation, layer: str, samples: Tensor, neurons: Tensor) -> Replay:
    """Pass ``(m, *input)`` samples through the model and differentiate at a neuron each.

    The bias gradient that a sample with label y gives a neuron is ``p · J - J_y``, for
    its predicted probabilities ``p`` and the derivatives ``J`` of the logits in what the
    neuron puts out: one forward-mode pass gives it for every label at once.

    Args:
        observation: Of one local step.
        layer: Name of the dense layer.
        samples: The candidates.
        neurons: ``(m,)``, a neuron of the layer for each.

    Raises:
        NotImplementedError: The model has an operation without forward-mode derivative.
    """
    tensors = {**observation.buffers, **observation.parameters}
    network = network_without(tensors, observation.model, observation.facts.train_mode, samples)

    def nudge(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _dual(output, torch.zeros_like(output).scatter(1, neurons[:, None], 1.0))

    network.get_submodule(layer).register_forward_hook(nudge)
    with torch.no_grad(), dual_level(), _LinearOnce():
        predicted, slope = _parts(functional_call(network, tensors, (samples,)))
    assert slope is not None, "the layer is on the way to the output"
    mean = (predicted.softmax(1) * slope).sum(1, keepdim=True)
    return Replay(
        shares=(mean - slope) / observation.samples,
        spread=(slope.amax(1) - slope.amin(1)) / observation.samples,
    )


class _LinearOnce(TorchFunctionMode):
    """While active, dense layers take value and derivative through in one product.

    Forward-mode differentiation would multiply three times, one of them with zeros.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear and not kwargs:
            value, slope = _parts(args[0])
            if slope is not None:
                both = functional.linear(torch.cat([value, slope]), args[1])
                bias = args[2] if len(args) > 2 and args[2] is not None else 0.0
                return _dual(both[: len(value)] + bias, both[len(value) :])
        return func(*args, **(kwargs or {}))


def _dual(value: Tensor, slope: Tensor) -> Tensor:
    made: Tensor = forward_ad.make_dual(value, slope)  # type: ignore[no-untyped-call]
    return made


def _parts(dual: Tensor) -> tuple[Tensor, Tensor | None]:
    value, slope = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
    return value, slope
