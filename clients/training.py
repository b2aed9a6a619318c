"""Local training of one client."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.records import Dataset, Indices, TrainingFacts


def train(
    model: nn.Module,
    dataset: Dataset,
    batches: Sequence[Indices],
    facts: TrainingFacts,
    device: torch.device,
    act: Callable[[Tensor, Tensor], None] = lambda inputs, labels: None,
) -> float:
    """Train in place with SGD on the given batches.

    Args:
        model: Holds the parameters received; afterwards those to send back.
        dataset: Where the batches' indices point.
        batches: Samples of each step, in order.
        facts: Learning rate, momentum, weight decay, proximal term, mode.
        device: Where to compute.
        act: Called in each step with inputs and labels, when the parameters hold the
            gradient of the loss and the optimiser has not taken it yet (see `acting`).

    Returns:
        Mean cross-entropy over the samples of all steps, each before its step.
    """
    model.to(device).train(facts.train_mode)
    # Only the proximal term looks back at them.
    received = [p.detach().clone() for p in model.parameters()] if facts.proximal_mu else []
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=facts.lr,
        momentum=facts.momentum,
        weight_decay=facts.weight_decay,
    )
    total, count = 0.0, 0
    for batch in batches:
        inputs = torch.from_numpy(dataset.samples(batch)).to(device)
        labels = torch.from_numpy(dataset.labels[batch]).to(device)
        loss = functional.cross_entropy(model(inputs), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        act(inputs, labels)
        if facts.proximal_mu:
            _add_proximal_term(model, received, facts.proximal_mu)
        optimiser.step()
        total += float(loss.detach()) * len(batch)
        count += len(batch)
    return total / count


def _add_proximal_term(model: nn.Module, received: Sequence[Tensor], mu: float) -> None:
    # FedProx (Li et al., 2020): mu/2 ||w - w_received||^2, added to the gradient as
    # weight decay is, so that the loss reported stays the plain one.
    for parameter, start in zip(model.parameters(), received, strict=True):
        assert parameter.grad is not None
        parameter.grad.add_(parameter.detach() - start, alpha=mu)
