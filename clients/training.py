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
        batches: Samples of each step, in order; of a sampled one perhaps none.
        facts: Learning rate, momentum, weight decay, proximal term, mode.
        device: Where to compute.
        act: Called in each step with inputs and labels, when the parameters hold the
            gradient of the loss and the optimiser has not taken it yet (see `acting`).

    Returns:
        Mean cross-entropy over the samples of all steps, each before its step; 0 where no
        step had any.
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
        optimiser.zero_grad()
        if len(batch):
            loss = functional.cross_entropy(model(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) * len(batch)
        else:  # a Poisson sample of nobody
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        act(inputs, labels)
        if facts.proximal_mu:
            _add_proximal_term(model, received, facts.proximal_mu)
        optimiser.step()
        count += len(batch)
    return total / count if count else 0.0


def _add_proximal_term(model: nn.Module, received: Sequence[Tensor], mu: float) -> None:
    # FedProx (Li et al., 2020): mu/2 ||w - w_received||^2, added to the gradient as
    # weight decay is, so that the loss reported stays the plain one.
    for parameter, start in zip(model.parameters(), received, strict=True):
        assert parameter.grad is not None
        parameter.grad.add_(parameter.detach() - start, alpha=mu)
