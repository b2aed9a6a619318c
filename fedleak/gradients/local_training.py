"""What disclosed training facts say about the shape of a client's local training."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedleak.records import TrainingFacts


def batches(facts: TrainingFacts) -> tuple[slice, ...]:
    """Which of the ``b`` distinct samples each local step trains on.

    The ``b`` samples are the first ones the client draws, in the order of its first
    epoch. An epoch is cut into consecutive batches, the last of which may be short;
    the next epoch starts again with the first sample. A client that shuffles anew
    every epoch does not disclose its later permutations, so for more than one epoch
    this order is an assumption.

    Returns:
        One slice into the sample axis per step.
    """
    starts = range(0, facts.examples, facts.batch_size)
    epoch = [slice(start, min(start + facts.batch_size, facts.examples)) for start in starts]
    return tuple(epoch[step % len(epoch)] for step in range(facts.steps))


def gradient_weight(facts: TrainingFacts) -> float:
    """How often a constant gradient would be counted in the update.

    SGD's velocity after step t is the sum of ``momentum^(t-j)`` times gradient j, and
    the update is the sum of the velocities. Without momentum this is ``steps``.
    """
    weight = velocity = 0.0
    for _ in range(facts.steps):
        velocity = facts.momentum * velocity + 1.0
        weight += velocity
    return weight


def mean_gradient(
    update: Mapping[str, Tensor], parameters: Mapping[str, Tensor], facts: TrainingFacts
) -> dict[str, Tensor]:
    """The loss gradient behind an update, averaged over the local steps.

    Exact for one step. For more it takes the weights to stay near those sent, which is
    the approximation that treats a FedAvg update as one gradient.

    Args:
        update: ``(sent - received) / lr`` by parameter name.
        parameters: Parameters sent, by name; needed for the share of weight decay.
        facts: The client's disclosed training facts.

    Returns:
        By name, in the shapes of ``update``.
    """
    weight = gradient_weight(facts)
    return {
        name: value / weight - facts.weight_decay * parameters[name]
        for name, value in update.items()
    }
