"""First derivatives of many candidates at once, of the update map or what stands for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedleak.gradients.plan import Plan

Update = Mapping[str, Tensor]
"""``(R, *parameter shape)`` by parameter name."""
Objective = Callable[[Update, Tensor, slice], Tensor]
"""Takes the updates of ``r`` candidates, their inputs and which of all candidates they
are; returns ``(r,)``, one value for each candidate that depends on it alone."""


class BatchedMap(ABC):
    """A map of many candidates at once, and its first derivatives.

    Shapes: ``R`` candidates, each of ``b`` samples. Inputs are ``(R, b, *input)``, labels
    ``(R, b)`` int64 or ``(R, b, K)`` class probabilities.
    """

    @abstractmethod
    def __call__(self, inputs: Tensor, labels: Tensor) -> Update:
        """The updates of ``R`` candidates."""

    @abstractmethod
    def plan(self, inputs: Tensor, labels: Tensor) -> Plan:
        """How candidates of such shapes are evaluated together."""

    @abstractmethod
    def evaluate(self, plan: Plan, inputs: Tensor, labels: Tensor) -> Update:
        """The updates of at most ``plan.chunk`` candidates.

        What it gives may be a `fedleak.gradients.factored.FactoredUpdate`, whose dense
        layers cost little until they are looked at.
        """

    def linearise(self, inputs: Tensor, labels: Tensor) -> Linearisation:
        """The updates and their Jacobians at a point, for many products with them.

        All candidates' graphs are held: give no more than `plan` says fit.
        """
        return Linearisation(lambda x: self(x, labels), inputs)

    def value_and_grad(
        self, objective: Objective, inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """An objective's values ``(R,)`` and gradients in the inputs; see `value_and_grads`."""
        values, gradients, _ = self.value_and_grads(objective, inputs, labels)
        return values, gradients

    def value_and_grads(
        self, objective: Objective, inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Evaluate an objective of the updates and its gradients.

        Only one chunk's graphs are held at a time.

        Returns:
            Values ``(R,)``, gradients in the inputs ``(R, b, *input)``, and gradients in
            class probabilities ``(R, b, K)`` (None for int64 labels), all detached.
        """
        plan = self.plan(inputs, labels)
        results = []
        for start in range(0, len(inputs), plan.chunk):
            rows = slice(start, min(start + plan.chunk, len(inputs)))
            at, targets = inputs[rows].detach().requires_grad_(), labels[rows].detach()
            variables = [at]
            if targets.is_floating_point():
                variables.append(targets.requires_grad_())
            value = objective(self.evaluate(plan, at, targets), at, rows)
            results.append((value.detach(), *torch.autograd.grad(value.sum(), variables)))
        values, of_inputs, *of_labels = (torch.cat(each) for each in zip(*results, strict=True))
        return values, of_inputs, of_labels[0] if of_labels else None


class Linearisation:
    """Updates and their Jacobians in the inputs at one point, ready to be used many times.

    The products reuse one graph: a VJP goes back through it, and as the VJP is linear in
    its cotangents, going back through the VJP gives the JVP.

    Attributes:
        update: The updates at the point, detached.
    """

    def __init__(self, function: Callable[[Tensor], Update], inputs: Tensor) -> None:
        """Evaluate a function of ``R`` candidates ``(R, ...)`` and keep their graphs."""
        self._inputs = inputs.detach().requires_grad_()
        update = function(self._inputs)
        self._names = tuple(update)
        self._outputs = tuple(update[name] for name in self._names)
        self.update: Update = {name: update[name].detach() for name in self._names}
        self._cotangents = tuple(torch.zeros_like(v).requires_grad_() for v in self._outputs)
        (self._pulled,) = torch.autograd.grad(
            self._outputs, self._inputs, self._cotangents, create_graph=True
        )

    def jvp(self, tangents: Tensor) -> Update:
        """The Jacobians times ``(R, ...)`` like the inputs, one direction per candidate."""
        products = torch.autograd.grad(self._pulled, self._cotangents, tangents, retain_graph=True)
        return dict(zip(self._names, products, strict=True))

    def vjp(self, cotangents: Update) -> Tensor:
        """Updates ``(R, *parameter shape)`` times the Jacobians, ``(R, ...)`` like the inputs."""
        given = [cotangents[name] for name in self._names]
        (product,) = torch.autograd.grad(self._outputs, self._inputs, given, retain_graph=True)
        return product
