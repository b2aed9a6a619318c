"""Per-sample gradients, clipped and noised by Opacus.

Opacus takes seconds to import, so this module is imported where it is used.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from opacus.optimizers import (
    AdaClipDPOptimizer,
    DPOptimizer,
    DPOptimizerFastGradientClipping,
    DPPerLayerOptimizer,
)
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from opacus.validators import ModuleValidator
from torch import Tensor, nn

# Opacus hooks the first layer too, whose inputs need no gradient; that is no mistake.
warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients")

Clipping = Literal["flat", "per-layer", "adaptive", "ghost"]


class PrivateGradient:
    """Puts the clipped and noised sum of per-sample gradients in the place of a batch's mean.

    Called in each local step with inputs ``(b, *input)`` and labels ``(b,)``, after the
    backward pass. ``b`` may be 0: the sum is then noise alone.
    """

    def __init__(
        self, model: nn.Module, hooks: GradSampleHooks, optimiser: DPOptimizer, ghost: bool
    ) -> None:
        self._model = model
        self._hooks = hooks
        self._optimiser = optimiser
        self._ghost = ghost

    @property
    def clip(self) -> float:
        """The norm that gradients are clipped to in the next step."""
        return float(self._optimiser.max_grad_norm)

    def __call__(self, inputs: Tensor, labels: Tensor) -> None:
        weights = self._optimiser.params
        if self._ghost:
            self._clip_by_norms(inputs, labels)
        elif not len(labels):
            for weight in weights:
                weight.grad_sample = weight.new_zeros(0, *weight.shape)
        self._optimiser.pre_step()
        made = [weight.grad for weight in weights]
        self._optimiser.zero_grad(set_to_none=True)
        for weight, gradient in zip(weights, made, strict=True):
            weight.grad = gradient

    def _clip_by_norms(self, inputs: Tensor, labels: Tensor) -> None:
        """Leave the clipped gradients' sum, from a pass of its own that makes no gradient twice.

        Both backward passes of Opacus go through one forward pass, so that what is clipped
        has the norm that was measured, whatever dropout draws.
        """
        if not len(labels):
            for weight in self._optimiser.params:
                weight.grad = torch.zeros_like(weight)
            return
        self._hooks.enable_hooks()
        loss = DPLossFastGradientClipping(self._hooks, self._optimiser, nn.CrossEntropyLoss())
        loss(self._model(inputs), labels).backward()
        self._hooks.disable_hooks()


class _Adaptive(AdaClipDPOptimizer):  # type: ignore[misc]
    """Opacus' adaptive clipping, for batches whose size is as private as what is in them."""

    def clip_and_accumulate(self) -> None:
        if len(self.grad_samples[0]):
            super().clip_and_accumulate()
            return
        for weight in self.params:
            weight.summed_grad = torch.zeros_like(weight)
        self.unclipped_num = torch.zeros(())

    def update_max_grad_norm(self) -> None:
        # The noise is for counts of b_i - 1/2, which one sample changes by 1/2 (Andrew et al.
        # 2021, Theorem 1). Divided by the batch's own size, as Opacus does, they would tell it.
        self.unclipped_num += (self.expected_batch_size - self.sample_size) / 2
        self.sample_size: int = self.expected_batch_size
        super().update_max_grad_norm()


@contextmanager
def private_gradient(
    model: nn.Module,
    clipping: Clipping,
    *,
    clip: float,
    noise_multiplier: float,
    expected_batch_size: int,
    unclipped: float,
    generator: torch.Generator,
) -> Iterator[PrivateGradient]:
    """Let a model that is trained inside give a `PrivateGradient` in each step.

    Args:
        model: In training mode from its first step on.
        clipping: ``flat`` clips a sample's whole gradient; ``per-layer`` each parameter's
            part of it to ``clip / sqrt(parameters)``; ``adaptive`` as flat, to a norm that
            follows a quantile of the norms; ``ghost`` as flat, from norms alone, so that no
            per-sample gradient is ever in memory.
        clip: Greatest l2 norm of a sample's gradient; where adaptive, at first.
        noise_multiplier: Standard deviation of the sum's noise over ``clip``.
        expected_batch_size: What the sum is divided by.
        unclipped: Where adaptive: share of samples that is to stay unclipped.
        generator: Of the noise, on the model's device.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    settings = {
        "noise_multiplier": noise_multiplier,
        "max_grad_norm": clip,
        "expected_batch_size": expected_batch_size,
        "generator": generator,
    }
    # Opacus' optimisers wrap another one; this one only holds the weights.
    holder = torch.optim.SGD(weights, lr=1.0)
    if clipping == "flat":
        optimiser = DPOptimizer(holder, **settings)
    elif clipping == "per-layer":
        settings["max_grad_norm"] = [clip / len(weights) ** 0.5] * len(weights)
        optimiser = DPPerLayerOptimizer(holder, **settings)
    elif clipping == "adaptive":
        optimiser = _Adaptive(
            holder,
            **settings,
            target_unclipped_quantile=unclipped,
            # Both as Andrew et al. (2021) recommend, but for small batches, whose count must
            # be noised as much as the gradient is.
            clipbound_learning_rate=0.2,
            unclipped_num_std=max(expected_batch_size / 20, noise_multiplier),
            min_clipbound=clip / 1000,
            max_clipbound=clip * 1000,
        )
    else:
        optimiser = DPOptimizerFastGradientClipping(holder, **settings)
    hooks = _hooks(model, clipping, clip)
    try:
        yield PrivateGradient(model, hooks, optimiser, ghost=clipping == "ghost")
    finally:
        hooks.cleanup()
        for weight in weights:
            delattr(weight, "summed_grad")


def _hooks(model: nn.Module, clipping: Clipping, clip: float) -> GradSampleHooks:
    if clipping != "ghost":
        return GradSampleHooks(model)
    hooks = GradSampleHooksFastGradientClipping(model, max_grad_norm=clip)
    hooks.disable_hooks()
    return hooks


@functools.lru_cache(maxsize=1)
def untrainable(model: nn.Module, input_shape: tuple[int, ...], clipping: Clipping) -> str | None:
    """Why Opacus cannot train a model, with its remedy, or None. Tries it on blank samples."""
    model = copy.deepcopy(model).train()
    for error in ModuleValidator.validate(model):
        said = str(error).partition(". ")[0]
        if "BatchNorm" in said:
            return (
                f"Opacus says: {said}. Use group norm in its place (of resnet18: "
                "model.norm = 'group'; of your own model: opacus.validators.ModuleValidator.fix)."
            )
        return f"Opacus says: {said}."
    tokens = any(isinstance(layer, nn.Embedding | nn.EmbeddingBag) for layer in model.modules())
    blank = torch.zeros(2, *input_shape, dtype=torch.int64 if tokens else torch.float32)
    labels = torch.zeros(2, dtype=torch.int64)
    try:
        with private_gradient(
            model,
            clipping,
            clip=1.0,
            noise_multiplier=0.0,
            expected_batch_size=2,
            unclipped=0.5,
            generator=torch.Generator(),
        ) as step:
            nn.functional.cross_entropy(model(blank), labels).backward()  # type: ignore[no-untyped-call]
            step(blank, labels)
    except Exception as error:  # whatever Opacus, or the user's model under it, says
        return f"Opacus cannot take its per-sample gradients: {error}"
    return None
