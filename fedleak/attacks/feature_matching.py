"""A sample from what the dense layers of a network give away exactly."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedleak.attacks.first_order import (
    Colour,
    Decay,
    FirstOrderAttack,
    Rate,
    RelativeWeight,
    Schedule,
    Smoothing,
)
from fedleak.attacks.labels import known_labels, labels_unsupported, recover_labels
from fedleak.attacks.optimisation import Best, Distance, Search
from fedleak.attacks.structure import dense_chain, probe, samples_like
from fedleak.errors import AttackFailed
from fedleak.gradients import (
    Update,
    UpdateMap,
    cosine_distance,
    evaluation_copy,
    mean_gradient,
    squared_distance,
)
from fedleak.records import Observation, Reconstruction, Setting, TrainingFacts


class FeatureMatching(FirstOrderAttack):
    """One sample, as the layers before the first dense one see it.

    For a single sample the first dense layer's weight gradient is the outer product of
    its bias gradient ``h`` and what it was given, its features (Boenisch et al., Eq. 5).
    Everything from that layer on is then known exactly: the features, and the gradient of
    the loss in its output, which is ``h``. So the search leaves the dense layers out. Its
    update map is that of the layers before, with the loss ``<h, output>``, whose gradients
    in them are those the client sent; none of them hangs any more on whether the dense
    layers' neurons and the prediction are right (the first step of Zhu & Blaschko, R-GAP,
    ICLR 2021, who go on layer by layer). The objective is the cosine distance of these
    gradients plus ``features`` times the relative squared distance of the features.

    What is left are the gates of ReLU and max pooling, which make the update jump: they
    open gradually at first (`fedleak.attacks.gates`). And where the gradients of a few
    layers are too little to fix all pixels, the prior decides about the rest: total
    variation, with colour weighed more than brightness, whose weight comes down as the
    search goes on. It begins with what is large in an image and ends with what the update
    says.
    """

    kind: Literal["feature-matching"] = "feature-matching"
    iterations: int = Field(
        800, ge=1, le=1_000_000, description="evaluations of the update map per restart"
    )
    schedule: Schedule = "cosine"
    lr: Rate = 0.05
    tv: float = Field(3.0, ge=0, le=10, description="weight of the total variation at the start")
    tv_decay: Decay = 3e-4
    relative_tv: RelativeWeight = 10.0
    smoothing: Smoothing = 2.0
    colour: Colour = 3.0
    features: float = Field(
        3.0,
        gt=0,
        le=1e6,
        description="weight of the features' distance beside that of the gradients before them",
    )

    def unsupported(self, setting: Setting) -> str | None:
        if self.layers is not None:
            return "uses the first dense layer and all before it: layers cannot be chosen"
        if reason := super().unsupported(setting):
            return reason
        # The final dense layer is needed even where the label is known.
        if reason := labels_unsupported(setting):
            return reason
        if setting.facts.steps > 1 or min(setting.facts.batch_size, setting.facts.examples) > 1:
            return "needs a client that took one step on one sample"
        layer, before = _first_dense(setting.model, {}, setting.facts, setting.input_shape)
        if not before:
            return f"needs layers before the first dense one; {layer!r} itself sees the input"
        if setting.model.get_submodule(layer).bias is None:
            return f"needs a bias in the first dense layer; {layer!r} has none"
        return None

    def _mapping(self, observation: Observation, facts: TrainingFacts) -> UpdateMap:
        layer, before = _first_dense_of(observation)
        parameters, buffers = self._tensors(observation)
        return UpdateMap(
            _ending_at(layer, observation.model),
            parameters,
            buffers,
            facts,
            layers=(*before, f"{layer}.weight"),
            chunk=self.chunk,
            loss=_along,
        )

    def _labels(self, observation: Observation, generator: torch.Generator) -> Tensor:
        """In the labels' place, the loss's gradient in the layer's output: ``(R, 1, N)``."""
        layer, _ = _first_dense_of(observation)
        gradient = mean_gradient(observation.update, observation.parameters, observation.facts)
        return gradient[f"{layer}.bias"].expand(self.restarts, 1, -1)

    def _distance(self, search: Search) -> Distance:
        *_, dense = search.target

        def distance(update: Update, target: Update) -> Tensor:
            before = {name: value for name, value in target.items() if name != dense}
            apart = squared_distance(update, {dense: target[dense]})
            return cosine_distance(update, before) + self.features * apart

        return distance

    def _read(
        self, best: Best, objective: Tensor, chosen: Tensor, observation: Observation
    ) -> Reconstruction | AttackFailed:
        found = super()._read(best, objective, chosen, observation)
        if isinstance(found, AttackFailed):
            return found
        read = recover_labels if self.labels == "recovered" else known_labels
        return replace(found, labels=read(observation))


def _along(outputs: Tensor, slopes: Tensor, reduction: str) -> Tensor:
    """The loss whose gradient in the outputs is given, both ``(n, N)``."""
    total = (outputs * slopes).sum()
    return total / len(outputs) if reduction == "mean" else total


class _Output:
    """Lets a network return what one of its layers gave."""

    def __init__(self) -> None:
        self._seen = torch.empty(0)

    def keep(self, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen = output

    def give(self, *_: object) -> Tensor:
        return self._seen


def _ending_at(layer: str, model: nn.Module) -> nn.Module:
    """A copy of the model whose output is that of one of its layers."""
    network = copy.deepcopy(model)
    # Copies of the network have a copy of it: deepcopy goes through bound methods.
    output = _Output()
    network.get_submodule(layer).register_forward_hook(output.keep)
    network.register_forward_hook(output.give)
    return network


def _first_dense_of(observation: Observation) -> tuple[str, tuple[str, ...]]:
    tensors = {**observation.buffers, **observation.parameters}
    return _first_dense(observation.model, tensors, observation.facts, observation.input_shape)


def _first_dense(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    facts: TrainingFacts,
    input_shape: tuple[int, ...],
) -> tuple[str, tuple[str, ...]]:
    """The first dense layer through which everything goes, and the parameters before it.

    Args:
        model: The architecture, which ends in a dense layer.
        tensors: Parameters and buffers by name; the model's own stand in for others.
        facts: What a client discloses of its training.
        input_shape: ``*input`` of one sample.
    """
    samples = samples_like(2, input_shape)
    layer, *_ = dense_chain(probe(model, tensors, facts.train_mode, samples))
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    network = evaluation_copy(_ending_at(layer, model), facts.train_mode, samples)
    network.requires_grad_()
    own = dict(network.named_parameters())
    slopes = torch.autograd.grad(
        network(samples).sum(), [own[name] for name in trained], allow_unused=True
    )
    used = [name for name, slope in zip(trained, slopes, strict=True) if slope is not None]
    dense = (f"{layer}.weight", f"{layer}.bias")
    return layer, tuple(name for name in used if name not in dense)
