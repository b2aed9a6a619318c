"""From components to a network that is known to fit the data."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from fedleak.errors import Problem, ResourceError, ScenarioError
from fedleak.models.architecture import Architecture
from fedleak.models.initialisation import Init
from fedleak.seeding import derive

_TEXT_REMEDY = (
    ". Texts need a model that begins with an embedding: 'boenisch-text', or your own as "
    "'module:Class'."
)


def build(
    model: Architecture,
    init: Init,
    input_shape: tuple[int, ...],
    classes: int,
    seed: int,
    tokens: int = 0,
) -> nn.Module:
    """Make a network with its initial weights; the same arguments give the same weights.

    Torch's global random state is left as it was. Parameter names are those of the
    architecture, with normalisation or without.

    Args:
        model: The architecture.
        init: The rule for initial weights.
        input_shape: Shape of one sample.
        classes: Number of outputs.
        seed: The scenario's seed.
        tokens: Tokens in the vocabulary, if the samples are texts.

    Raises:
        ScenarioError: The architecture does not fit the data.
        ResourceError: It does not fit into memory.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the GPUs as well.
        torch.default_generator.manual_seed(derive(seed, "model-init"))
        try:
            network = model.build(input_shape, classes)
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            raise ResourceError(
                f"the model does not fit into memory, make it smaller: {str(error).splitlines()[0]}"
            ) from error
        init.apply(network)
        network = normalised(model, network, input_shape)
        check_model(network, input_shape, classes, tokens)
    return network


def normalised(model: Architecture, network: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """Let the model's normalisation, where it has one, act before its network.

    Raises:
        ScenarioError: Mean or deviation do not fit the data.
    """
    layer = model.normalisation(input_shape)
    if layer is not None:
        # Not a submodule: a network may call all that it has one after the other, as
        # subclasses of Sequential do.
        network.register_forward_pre_hook(functools.partial(_normalise_input, layer))
    return network


def check_model(
    model: nn.Module, input_shape: tuple[int, ...], classes: int, tokens: int = 0
) -> None:
    """Pass two blank samples through ``model`` in evaluation mode.

    Args:
        model: The network.
        input_shape: Shape of one sample.
        classes: Number of outputs that the data asks for.
        tokens: Tokens in the vocabulary, if the samples are texts; they are blank but
            for the last of them.

    Raises:
        ScenarioError: The network does not take the samples, or does not give one logit
            per class. Says which layer got what.
    """
    entered: list[str] = []

    def remember(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            shapes = [tuple(x.shape[1:]) for x in inputs if isinstance(x, torch.Tensor)]
            entered.append(f"layer {name!r}, {layer}, got samples of shape {shapes}")

        return layer.register_forward_pre_hook(hook)

    hooks = [
        remember(name, layer)
        for name, layer in model.named_modules()
        if name and not list(layer.children())
    ]
    training = [(module, module.training) for module in model.modules()]
    samples = f"the data's samples have shape {input_shape}"
    blank = torch.zeros(2, *input_shape)
    if tokens:
        samples = f"{samples} and are tokens 0..{tokens - 1}"
        blank = torch.full(blank.shape, tokens - 1)
    try:
        with torch.no_grad():
            output = model.eval()(blank)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        where = f" ({entered[-1]})" if entered else ""
        message = f"{samples}, and the model does not take them{where}: {error}"
        if tokens:
            message += (
                _TEXT_REMEDY
                if not isinstance(error, IndexError)
                else (
                    f". Give its embedding at least {tokens} tokens (of 'boenisch-text': "
                    "model.tokens), or the data fewer (data.vocabulary)."
                )
            )
        raise ScenarioError(Problem("model", message)) from error
    finally:
        for module, mode in training:
            module.training = mode
        for hook in hooks:
            hook.remove()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ScenarioError(Problem("model", "has no parameter that is trained"))
    given = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if given != (2, classes):
        message = (
            f"for 2 samples of {classes} classes the model must give logits of shape "
            f"{(2, classes)}; it gave {given}."
        )
        raise ScenarioError(Problem("model", message))


def _normalise_input(
    layer: nn.Module, network: nn.Module, inputs: tuple[Any, ...]
) -> tuple[Any, ...]:
    return (layer(inputs[0]), *inputs[1:])
