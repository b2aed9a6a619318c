"""The update map u(x), for many candidate inputs at once, with its derivatives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from fedleak.errors import nearest
from fedleak.gradients.batching import PLANS, Evaluate, allocated, choose, fitting
from fedleak.gradients.checkpointing import recomputed
from fedleak.gradients.derivatives import BatchedMap, Update
from fedleak.gradients.explicit import ExplicitGradients, Loss
from fedleak.gradients.local_training import batches
from fedleak.gradients.network import evaluation_copy
from fedleak.gradients.normalisation import ElementaryNormalisation
from fedleak.gradients.plan import Batching, Plan
from fedleak.records import TrainingFacts

_Gradient = Callable[[Sequence[str], Update, Tensor, Tensor], Update]

_DIRECTIONS = 64
"""Most directions pushed at once: more are no faster."""
_NUMBERS = 2**23
"""Of one block of columns, so that a large model's do not fill the memory."""


class UpdateMap(BatchedMap):
    """The update a client would release after training on given samples.

    ``u(x, y) = (sent - received) / lr``: with one local step it is the gradient of the
    mean cross entropy (plus weight decay times the parameters); with more it unrolls
    the local SGD, whose momentum starts at zero, with FedProx's pull if any, over the batches that
    `fedleak.gradients.batches` derives from the facts. All of it can be differentiated
    by autograd, as often as the model's own operations can.

    Shapes: ``R`` candidates, each of ``b`` samples. Inputs are ``(R, b, *input)``,
    labels ``(R, b)`` int64 or ``(R, b, K)`` class probabilities, and an update is a
    dict of ``(R, *parameter shape)`` by parameter name. Tensors have the device and
    floating-point type of the parameters; inputs may also be integer tokens, and then
    only the value is defined.

    How candidates are evaluated together is measured when the first derivative is asked
    for with candidates of a shape (`fedleak.gradients.batching`), and kept. The ways
    differ in speed and, by rounding, in the last digits.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        facts: TrainingFacts,
        *,
        layers: Sequence[str] | None = None,
        chunk: int | None = None,
        batching: Batching | None = None,
        loss: Loss = functional.cross_entropy,
    ) -> None:
        """Fix everything but the candidates.

        Args:
            model: The architecture; it is copied, its own parameter values are unused.
            parameters: Trainable parameters sent to the client, by name.
            buffers: Buffers sent to the client, by name.
            facts: The client's disclosed training facts.
            layers: Parameters whose update is wanted, by name; None for all that the
                model does not hold frozen.
            chunk: Candidates evaluated at a time; None for as many as memory allows.
            batching: How they are evaluated together; None to measure it.
            loss: What the client lowers.

        Raises:
            ValueError: A name in ``layers`` is not a parameter that is trained, or
                ``batching`` is explicit and the client took several steps, or it is
                checkpoint and the client took one.
        """
        self.facts = facts
        self.chunk = chunk
        self._criterion = loss
        frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
        self._trained = tuple(name for name in parameters if name not in frozen)
        self.layers = self._trained if layers is None else tuple(layers)
        for name in self.layers:
            if name not in self._trained:
                hint = " It is frozen." if name in frozen else nearest(name, self._trained)
                raise ValueError(f"no parameter {name!r} is trained.{hint}")
        self._parameters = {name: value.detach() for name, value in parameters.items()}
        like = next(iter(self._parameters.values()))
        self._network = evaluation_copy(model, facts.train_mode, like)
        used = {name for name, _ in self._network.named_buffers(remove_duplicate=False)}
        self._buffers = {name: value for name, value in buffers.items() if name in used}
        self._batches = batches(facts)
        self._ways: dict[Batching, Evaluate] = {
            "vmap": vmap(partial(self._update_of_one, self._gradient)),
            "loop": partial(self._one_by_one, self._gradient),
        }
        if facts.steps == 1:
            wanted = {name: self._parameters[name] for name in self.layers}
            self._gradients = ExplicitGradients(self._logits, wanted, loss)
            self._ways["explicit"] = self._explicit
        else:
            self._ways["checkpoint"] = partial(self._one_by_one, self._gradient_again)
        if batching is not None and batching not in self._ways:
            steps = "several local steps" if facts.steps == 1 else "one local step"
            raise ValueError(f"{batching!r} batching is for {steps}, not {facts.steps}")
        self.batching = batching
        self._transformable = True
        self._plans: dict[tuple[object, ...], Plan] = {}

    def plan(self, inputs: Tensor, labels: Tensor) -> Plan:
        """How such candidates are evaluated; measured at the first call for their shapes."""
        key = _key(inputs, labels)
        if key not in self._plans:
            if self.batching is None:
                plan = self._chosen(inputs, labels)
            else:
                plan = Plan(self.batching, len(inputs))
            if self.chunk is not None:
                plan = replace(plan, chunk=min(plan.chunk, self.chunk))
            self._plans[key] = plan
        return self._plans[key]

    def _chosen(self, inputs: Tensor, labels: Tensor) -> Plan:
        target = {name: self._parameters[name] for name in self.layers}
        case = repr(
            (
                *_key(inputs, labels),
                inputs.device,
                type(self._network),
                repr(self._network),
                tuple((name, value.shape) for name, value in target.items()),
                self.facts,
            )
        )
        key = hashlib.sha256(case.encode()).hexdigest()[:16]
        if key not in PLANS:
            if self.facts.steps > 1 and not self._graph_fits(inputs, labels):
                PLANS[key] = Plan("checkpoint", 1)
            else:
                PLANS[key] = choose(self._ways, target, inputs, labels)
        return PLANS[key]

    def _graph_fits(self, inputs: Tensor, labels: Tensor) -> bool:
        """Whether one candidate's unrolled steps fit into memory, by what the first takes."""
        work = partial(self._differentiate_step, inputs, labels)
        return fitting(work, inputs.device) >= self.facts.steps

    def footprint(self, inputs: Tensor, labels: Tensor) -> int:
        """Bytes that one candidate's value and gradient take at most, graphs included.

        On the CPU; what operations there allocate is added up, over all local steps.

        Args:
            inputs: ``(R, b, *input)`` of which only shape and type matter.
            labels: ``(R, b)`` or ``(R, b, K)``.

        Raises:
            RuntimeError: The update cannot be differentiated in such inputs.
        """
        work = partial(self._differentiate_step, inputs, labels)
        return self.facts.steps * allocated(work)

    def _differentiate_step(self, inputs: Tensor, labels: Tensor) -> None:
        """The first local step of the first candidate, as attacks evaluate it."""
        batch = self._batches[0]
        variable = inputs[0, batch].detach().requires_grad_()
        found = self._gradient(self._trained, self._parameters, variable, labels[0, batch])
        squares = torch.stack([value.square().sum() for value in found.values()])
        torch.autograd.grad(squares.sum(), variable)

    def __call__(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The updates of ``R`` candidates."""
        if inputs.requires_grad and torch.is_grad_enabled():
            self.plan(inputs, labels)
        return self._evaluate(inputs, labels)

    def jvp(self, inputs: Tensor, labels: Tensor, tangents: Tensor) -> tuple[Update, Update]:
        """Forward over reverse: the updates, and their Jacobians times ``tangents``.

        Args:
            inputs: ``(R, b, *input)``.
            labels: ``(R, b)`` or ``(R, b, K)``.
            tangents: ``(R, b, *input)``, one direction per candidate.
        """
        if self.plan(inputs, labels).batching == "checkpoint":
            line = self.linearise(inputs, labels)
            return line.update, line.jvp(tangents)
        result = torch.func.jvp(lambda x: self._evaluate(x, labels), (inputs,), (tangents,))
        return cast(tuple[Update, Update], result)

    def vjp(
        self, inputs: Tensor, labels: Tensor, cotangents: Mapping[str, Tensor]
    ) -> tuple[Update, Tensor]:
        """The updates, and ``cotangents`` times their Jacobians as ``(R, b, *input)``.

        Args:
            inputs: ``(R, b, *input)``.
            labels: ``(R, b)`` or ``(R, b, K)``.
            cotangents: ``(R, *parameter shape)`` for each of the layers.
        """
        if self.plan(inputs, labels).batching == "checkpoint":
            line = self.linearise(inputs, labels)
            return line.update, line.vjp(cotangents)
        result = torch.func.vjp(lambda x: self._evaluate(x, labels), inputs)
        value, pull = cast(tuple[Update, Callable[[Update], tuple[Tensor]]], result)
        (product,) = pull({name: cotangents[name] for name in self.layers})
        return value, product

    def columns(self, inputs: Tensor, labels: Tensor, directions: Tensor) -> Update:
        """Forward over reverse: the Jacobian of one candidate times ``T`` directions.

        What does not depend on the direction is computed once for all, and no graph is held.

        Args:
            inputs: ``(b, *input)``.
            labels: ``(b,)`` or ``(b, K)``.
            directions: ``(T, b, *input)``.

        Returns:
            ``(T, *parameter shape)`` by name.
        """

        def product(direction: Tensor) -> Update:
            def update(at: Tensor) -> Update:
                return self._update_of_one(self._gradient, at, labels)

            return cast(Update, torch.func.jvp(update, (inputs,), (direction,))[1])

        if self._transformable:
            try:
                return vmap(product)(directions)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                # As in `_evaluate`.
                each = [product(direction) for direction in directions]
                self._transformable = False
        else:
            each = [product(direction) for direction in directions]
        return {name: torch.stack([one[name] for one in each]) for name in self.layers}

    def jacobian(self, inputs: Tensor, labels: Tensor, sample: int) -> Iterator[Update]:
        """The Jacobian in one sample, a block of columns at a time.

        Args:
            inputs: ``(b, *input)``, one candidate.
            labels: ``(b,)`` or ``(b, K)``.
            sample: Which of the ``b`` samples varies.

        Yields:
            ``(T, *parameter shape)`` by name: the derivatives in the sample's next ``T``
            values, in the order of the flattened sample.
        """
        only = slice(sample, sample + 1)
        for units in unit_directions(inputs, only, self.directions):
            yield self.columns(inputs, labels, units)

    @property
    def directions(self) -> int:
        """How many directions are worth taking at once, >= 1."""
        numbers = sum(self._parameters[name].numel() for name in self.layers)
        return max(1, min(_DIRECTIONS, _NUMBERS // numbers))

    def evaluate(self, plan: Plan, inputs: Tensor, labels: Tensor) -> Update:
        return self._ways[plan.batching](inputs, labels)

    def _evaluate(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        plan = self._plans.get(_key(inputs, labels))
        if plan is not None:
            return self._in_chunks(plan, inputs, labels)
        # A value is not worth a measurement.
        chunk = self.chunk or len(inputs)
        if self._transformable:
            try:
                return self._in_chunks(Plan("vmap", chunk), inputs, labels)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                # Either vmap cannot transform this model, or the arguments are wrong;
                # in the latter case the loop raises again, with the plainer message.
                updates = self._ways["loop"](inputs, labels)
                self._transformable = False
                return dict(updates)
        return dict(self._ways["loop"](inputs, labels))

    def _in_chunks(self, plan: Plan, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        way = self._ways[plan.batching]
        parts = [
            way(part, targets)
            for part, targets in zip(
                torch.split(inputs, plan.chunk), torch.split(labels, plan.chunk), strict=True
            )
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in self.layers}

    def _explicit(self, inputs: Tensor, labels: Tensor) -> Update:
        update = self._gradients(inputs, labels)
        decay = self.facts.weight_decay
        if not decay:
            return update
        return {name: value + decay * self._parameters[name] for name, value in update.items()}

    def _one_by_one(self, gradient: _Gradient, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        updates = [self._update_of_one(gradient, x, y) for x, y in zip(inputs, labels, strict=True)]
        return {name: torch.stack([update[name] for update in updates]) for name in self.layers}

    def _update_of_one(
        self, gradient_at: _Gradient, inputs: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Unroll local training on ``(b, *input)`` samples, as `torch.optim.SGD` does it."""
        facts = self.facts
        # A parameter that nobody asked for matters only to the steps that follow.
        trained = self.layers if facts.steps == 1 else self._trained
        current = dict(self._parameters)
        velocity: dict[str, Tensor] = {}
        update: dict[str, Tensor] = {}
        for batch in self._batches:
            for name, step in velocity.items():
                current[name] = current[name] - facts.lr * step
            gradient = gradient_at(trained, current, inputs[batch], labels[batch])
            for name in trained:
                step = gradient[name]
                if facts.proximal_mu:
                    step = step + facts.proximal_mu * (current[name] - self._parameters[name])
                if facts.weight_decay:
                    step = step + facts.weight_decay * current[name]
                if facts.momentum and name in velocity:
                    step = step + facts.momentum * velocity[name]
                velocity[name] = step
                update[name] = update[name] + step if name in update else step
        return {name: update[name] for name in self.layers}

    def _gradient(
        self, trained: Sequence[str], current: Update, inputs: Tensor, labels: Tensor
    ) -> Update:
        """The gradient of one step's loss in some of the parameters."""
        wanted = {name: current[name] for name in trained}
        return cast(Update, grad(self._loss)(wanted, current, inputs, labels))

    def _gradient_again(
        self, trained: Sequence[str], current: Update, inputs: Tensor, labels: Tensor
    ) -> Update:
        """The same, with no graph kept between its value and its derivative."""
        names = tuple(current)

        def gradient(x: Tensor, y: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
            found = self._gradient(trained, dict(zip(names, values, strict=True)), x, y)
            return tuple(found[name] for name in trained)

        found = recomputed(gradient, inputs, labels, *(current[name] for name in names))
        return dict(zip(trained, found, strict=True))

    def _loss(self, trained: Update, others: Update, inputs: Tensor, labels: Tensor) -> Tensor:
        with ElementaryNormalisation():
            logits = self._logits(inputs, {**others, **trained})
        return self._criterion(logits, labels, reduction="mean")

    def _logits(self, samples: Tensor, parameters: Update | None = None) -> Tensor:
        tensors = {**self._buffers, **(parameters or self._parameters)}
        return cast(Tensor, functional_call(self._network, tensors, (samples,)))


def unit_directions(inputs: Tensor, samples: slice, most: int) -> Iterator[Tensor]:
    """Directions in each of which one value of a candidate varies, ``(T, b, *input)``.

    Args:
        inputs: ``(b, *input)``, of which only shape, type and device matter.
        samples: Whose values vary, in the order of the flattened samples.
        most: ``T``, at most.
    """
    places = torch.arange(inputs.numel(), device=inputs.device).reshape(inputs.shape)
    for values in torch.split(places[samples].flatten(), most):
        units = inputs.new_zeros(len(values), inputs.numel())
        units[torch.arange(len(values)), values] = 1
        yield units.reshape(-1, *inputs.shape)


def _key(inputs: Tensor, labels: Tensor) -> tuple[object, ...]:
    return inputs.shape, labels.shape, inputs.dtype
