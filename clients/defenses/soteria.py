"""Soteria: features that tell most of a sample are kept out of a dense layer's gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from clients.defenses.defense import Defense, Metrics, Step, Turn
from fedleak.errors import nearest
from fedleak.gradients import Representation, dense_layers
from fedleak.models import has_dropout
from fedleak.records import Setting, TrainingFacts

_RATE = 0.4
"""Share of the features that is zeroed where nothing is said."""


class Soteria(Defense):
    """Perturbs what one dense layer was given, where its gradient is made of it.

    Sun et al. 2021, Alg. 1 and 2 with p = 2, q = 0. The layer's weight gradient is the sum
    over samples of ``d r'``, with ``d`` the loss's gradient at its output and ``r`` what it
    was given. Of each sample, the features with the largest ``|r_i| / ||dr_i/dx||`` are
    zero in ``r'``: those whose loss moves a sample furthest that is rebuilt from them. All
    other gradients, the layer's bias included, are as they were, and so is what the client
    computes.

    The defended layer is by default the first dense layer: what runs before it is the
    feature extractor. Where that layer is given the sample itself, as in logistic
    regression, ``dr_i/dx`` has norm one and the brightest pixels are zeroed.

    It reports ``bound``, the least l2 distance between a sample and what can be rebuilt of
    it, on average over the last batch: ``||r - r'|| / ||dr/dx||`` with the spectral norm (Eq. 9).
    The paper derives it for a rebuilder who inverts ``r'`` and for changes so small that
    ``r(x)`` is linear. It is no bound for one who leaves the zeroed entries out.

    It makes the layer's gradient anew from the batch: a defense that acts on gradients in
    local training must not come before it.
    """

    kind: Literal["soteria"] = "soteria"
    holds_back: ClassVar[bool] = True
    makes_gradients: ClassVar[bool] = True
    passes_again: ClassVar[bool] = True
    rate: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of the layer's features that are zeroed, per sample; default 0.4",
    )
    features: int | None = Field(
        None, ge=0, description="how many are zeroed (the paper's epsilon), in place of a share"
    )
    layer: str | None = Field(
        None, description="name of the defended dense layer; default the first that samples reach"
    )

    @model_validator(mode="after")
    def _one_count(self) -> Self:
        if self.rate is not None and self.features is not None:
            raise ValueError("give rate or features, not both")
        return self

    def unsupported(self, setting: Setting) -> str | None:
        trained = _trained(setting.model)
        if not trained:
            return "it defends a dense layer; this model trains none"
        if self.layer is not None and self.layer not in trained:
            return (
                f"no dense layer {self.layer!r} is trained; there are: "
                f"{', '.join(trained)}.{nearest(self.layer, trained)}"
            )
        if any(isinstance(module, nn.Embedding) for module in setting.model.modules()):
            return "it differentiates in the numbers of a sample; this model takes tokens"
        if setting.facts.train_mode and has_dropout(setting.model):
            return "dropout draws other masks in each pass; set client.train_mode = false"
        usable = defendable(setting.model, setting.facts.train_mode, setting.input_shape)
        if not usable or self.layer not in {None, *usable}:
            return (
                "what the layer is given must be one vector a sample that depends on no other "
                f"sample, and that is so for {', '.join(usable) or 'none here'}; behind batch "
                "norm set client.train_mode = false"
            )
        name = self.layer or usable[0]
        width = trained[name].in_features
        if self.features is not None and self.features >= width:
            return f"features = {self.features} would be all, or more, of the {width} of {name!r}"
        return None

    def note(self, model: nn.Module, facts: Sequence[TrainingFacts]) -> str | None:
        if self.rate == 0 or self.features == 0:
            return "soteria that zeroes no feature changes nothing."
        return None

    @contextmanager
    def training(self, model: nn.Module, turn: Turn) -> Iterator[Step]:
        train_mode, left = turn.facts.train_mode, turn.facts.steps
        representation: Representation | None = None

        def step(inputs: Tensor, labels: Tensor) -> Metrics:
            nonlocal left, representation
            left -= 1
            if not len(inputs):
                return {"bound": 0.0}
            if representation is None:
                shape = tuple(inputs.shape[1:])
                name = self.layer or defendable(model, train_mode, shape)[0]
                representation = Representation(model, name, train_mode)
            removed = self._perturb(model, representation, inputs, labels)
            if left > 0:  # only the last one's is reported
                return {}
            bound = certified_distance(removed, representation.spectral_norms(inputs))
            return {"bound": float(bound.mean())}

        yield step

    def _perturb(
        self, model: nn.Module, representation: Representation, inputs: Tensor, labels: Tensor
    ) -> Tensor:
        """Make the layer's weight gradient without some features, and return these, ``(n, L)``."""
        features, slopes = representation.factors(inputs, labels)
        count = self._count(features.shape[1])
        zeroed = largest(ratios(features, representation.gradient_norms(inputs)), count)
        removed = torch.where(zeroed, features, 0)
        if removed.any():
            gradient = model.get_parameter(f"{representation.layer}.weight").grad
            assert gradient is not None
            gradient.copy_(slopes.T @ (features - removed))
        return removed

    def _count(self, width: int) -> int:
        """How many of so many features are zeroed."""
        if self.features is not None:
            return self.features
        return round((_RATE if self.rate is None else self.rate) * width)


def defendable(model: nn.Module, train_mode: bool, input_shape: tuple[int, ...]) -> list[str]:
    """Dense layers that can be defended, in the order in which samples reach them."""
    trained = _trained(model)
    return [name for name in dense_layers(model, train_mode, input_shape) if name in trained]


def _trained(model: nn.Module) -> dict[str, nn.Linear]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
    }


def ratios(features: Tensor, norms: Tensor) -> Tensor:
    """``|r_i| / ||dr_i/dx||``: how far a sample moves that is rebuilt without feature i.

    Zero for a feature that is zero, infinite for another one that no sample can change.

    Args:
        features: ``r``, ``(n, L)``.
        norms: ``||dr_i/dx||``, ``(n, L)``.
    """
    return torch.where(features == 0, 0, features.abs() / norms)


def largest(ratios: Tensor, count: int) -> Tensor:
    """Which of each sample's features have the ``count`` largest ratios, ``(n, L)`` bool."""
    # Stable, so that of equals the first are taken on every machine.
    order = ratios.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(ratios, dtype=torch.bool).scatter(1, order[:, :count], True)


def certified_distance(removed: Tensor, spectral: Tensor) -> Tensor:
    """Sun et al. 2021, Eq. 9 with p = 2: ``||r - r'|| / ||dr/dx||``, ``(n,)``.

    Args:
        removed: ``r - r'``, ``(n, L)``.
        spectral: Spectral norms of ``dr/dx``, ``(n,)``.
    """
    lengths = removed.norm(dim=1)
    return torch.where(lengths == 0, 0, lengths / spectral)
