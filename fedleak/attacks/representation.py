"""Class-wise representations from the dense layers (Sun et al., Soteria: CVPR 2021)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fedleak.attacks.first_order import FirstOrderAttack
from fedleak.attacks.labels import labels_unsupported
from fedleak.attacks.optimisation import Search
from fedleak.attacks.structure import dense_chain, probe, samples_like
from fedleak.errors import AttackFailed
from fedleak.gradients import BatchedMap, Plan, Update, evaluation_copy, mean_gradient
from fedleak.records import Observation, Setting

_ROUNDS = 20
"""Rounds in which final representations and predicted probabilities correct each other."""

_SHARE = 0.05
"""Part of a layer's neurons that are taken to belong to one class."""


class Representation(FirstOrderAttack):
    """What each class looks like to the dense layers, and an image that looks like it.

    Sun et al., Sec. 3.2 and Fig. 2. Classes leave their mean representation in different
    rows of the dense layers' gradients. It is read first at the final layer, then
    backwards: the neurons that a class drives most name the rows of the layer before
    that hold its representation there. One image per class, not per sample, is returned:
    the one whose representation at the first dense layer points where the inferred one
    does, by signed Adam as in `GS`. Many images share a representation there, and total
    variation chooses among them.

    For a single sample the representations are exact. For several classes they are as
    good as the neurons are selective (`class_representations`); samples of one class
    are never told apart. All local steps together are taken for one gradient.

    Confidence: minus the cosine distance of the representations, total variation
    included.
    """

    kind: Literal["representation"] = "representation"
    local_steps: Literal["one-gradient"] = Field(
        "one-gradient", description="the client's update is always taken for one gradient"
    )
    tv: float = Field(0.01, ge=0, le=10, description="weight of the total variation")

    def unsupported(self, setting: Setting) -> str | None:
        if self.layers is not None:
            return "uses all dense layers: a choice of layers cannot be given"
        # The final dense layer is needed even where the labels are known.
        if reason := labels_unsupported(setting):
            return reason
        inputs = samples_like(2, setting.input_shape)
        model, train_mode = setting.model, setting.facts.train_mode
        seen = probe(model, {}, train_mode, inputs)
        for name in dense_chain(seen):
            if model.get_submodule(name).bias is None:
                return f"needs a bias in every dense layer; {name!r} has none"
        twice = probe(model, {}, train_mode, inputs[:1].repeat_interleave(2, 0)).output
        if not torch.allclose(twice[:1], seen.output[:1], rtol=0, atol=1e-9):
            return (
                "needs a network that treats samples one by one; batch norm in train mode does not"
            )
        return None

    def _prepare(self, observation: Observation, seed: int) -> Search:
        generator = torch.Generator().manual_seed(seed)
        known = self._labels(observation, generator)[0]
        counts = torch.bincount(known)
        labels = counts.nonzero()[:, 0]
        inferred = class_representations(observation, labels, counts[labels])
        first, target = next(iter(inferred.items()))
        start = self._start((len(labels), *observation.input_shape), generator)
        given = next(iter(observation.parameters.values()))
        start = start.to(given.device, self._dtype)
        mapping = _Features(observation, first, start, self.chunk)
        return Search(
            mapping, {first: target.to(start)[None]}, labels.expand(self.restarts, -1), start
        )


def class_representations(
    observation: Observation, labels: Tensor, counts: Tensor
) -> dict[str, Tensor]:
    """Mean representation of each class at the input of each dense layer.

    At the final layer, with class means ``r_k`` of ``n_k`` samples each, the gradient is
    ``sum_k (n_k / b) (p_k - e_k) r_k'`` as far as the samples of a class are predicted
    alike. The probabilities ``p_k`` follow from ``r_k`` and the layer's weights, so both
    are found in turns, by least squares, from uniform probabilities on. At a layer
    before, a row ``i`` is taken for class ``k`` where ``r_k[i]`` has the largest part in
    the sum over all classes; the least-squares ratio of these rows' weight gradients to
    their bias gradients is the representation.

    Args:
        observation: What the threat model lets an attack see.
        labels: ``(m,)`` int64, the classes present.
        counts: ``(m,)`` int64, their numbers of samples.

    Returns:
        ``(m, features)`` float64 on the CPU by layer name, from the first dense layer on.

    Raises:
        AttackFailed: No neuron of a layer tells anything about its input.
    """
    tensors = {**observation.buffers, **observation.parameters}
    inputs = samples_like(2, observation.input_shape)
    chain = dense_chain(probe(observation.model, tensors, observation.facts.train_mode, inputs))
    gradient = {
        name: value.detach().double().cpu()
        for name, value in mean_gradient(
            observation.update, observation.parameters, observation.facts
        ).items()
    }
    weight, bias = (
        observation.parameters[f"{chain[-1]}.{part}"].detach().double().cpu()
        for part in ("weight", "bias")
    )
    one_hot = functional.one_hot(labels.cpu(), observation.classes).double()
    shares = counts.cpu().double() / counts.sum()
    rows = gradient[f"{chain[-1]}.weight"]
    totals = gradient[f"{chain[-1]}.bias"]
    # What the true classes took from the bias gradient; the rest is the mean prediction.
    mean = (totals + shares @ one_hot).clamp(min=0)
    probabilities = (mean / mean.sum()).expand(len(labels), -1)
    found = rows.new_zeros(len(labels), rows.shape[1])
    for _ in range(_ROUNDS):
        found = torch.linalg.pinv((shares[:, None] * (probabilities - one_hot)).T) @ rows
        probabilities = functional.softmax(found @ weight.T + bias, 1)
    inferred = {chain[-1]: found}
    for name in reversed(chain[:-1]):
        rows, totals = gradient[f"{name}.weight"], gradient[f"{name}.bias"]
        part = found.abs() / found.abs().sum(0).clamp(min=torch.finfo(found.dtype).tiny)
        part = torch.where(totals != 0, part, 0)
        if not (part.amax(1) > 0).all():
            raise AttackFailed(f"no neuron of {name!r} tells what a class looks like to it")
        size = max(1, int(_SHARE * len(totals)))
        least = part.topk(size, dim=1).values[:, -1:].clamp(min=part[part > 0].min())
        weights = torch.where(part >= least, totals, 0)
        found = (weights @ rows) / (weights @ totals)[:, None]
        inferred = {name: found, **inferred}
    return inferred


class _Features(BatchedMap):
    """What a dense layer is given, in the place of an update map."""

    def __init__(
        self, observation: Observation, layer: str, like: Tensor, chunk: int | None
    ) -> None:
        self._chunk = chunk
        self._layer = layer
        self._network = evaluation_copy(observation.model, observation.facts.train_mode, like)
        used = {name for name, _ in self._network.named_buffers()}
        self._tensors = {
            name: value.detach().to(like) if value.is_floating_point() else value
            for name, value in {**observation.buffers, **observation.parameters}.items()
            if name in used or name in observation.parameters
        }
        self._given = like
        self._network.get_submodule(layer).register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._given = arguments[0]

    def plan(self, inputs: Tensor, labels: Tensor) -> Plan:
        return Plan("explicit", self._chunk or len(inputs))

    def evaluate(self, plan: Plan, inputs: Tensor, labels: Tensor) -> Update:
        return self(inputs, labels)

    def __call__(self, inputs: Tensor, labels: Tensor) -> Update:
        """Features ``(R, m, features)`` of ``(R, m, *input)``; labels play no part."""
        functional_call(self._network, self._tensors, (inputs.flatten(0, 1),))
        return {self._layer: self._given.reshape(*inputs.shape[:2], -1)}
