"""What one client does in one round, without the messages around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from clients.defenses import Defense, Turn, acting, received, released
from clients.training import train
from fedleak.records import Dataset, Indices
from fedleak.seeding import derive, reproducible


def local_round(
    model: nn.Module,
    dataset: Dataset,
    batches: Sequence[Indices],
    defenses: Sequence[Defense],
    turn: Turn,
    device: torch.device,
) -> dict[str, float]:
    """Look at what came in, train on it, release it.

    All randomness is of the streams that the turn's seed, client and round name. Asked
    again with other samples, another seed and a new state, it says what the client would
    have released of them. Facts and batches need not agree then: what a defense derives from
    the facts (how much noise, the batch size that it expects) stays as it was.

    Args:
        model: On the CPU. Holds the parameters received; afterwards those to release.
        dataset: Where the batches' indices point.
        batches: Samples of each step, in order.
        defenses: In the order in which they act.
        turn: Who trains, when and how; its state is read and changed.
        device: Where to compute.

    Returns:
        ``train_loss`` and what defenses report, by name.

    Raises:
        RoundRefused: A defense refuses the round; nothing was trained.
    """
    sent = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with reproducible(derive(turn.seed, "training", client=turn.client, round=turn.round)):
        metrics = received(defenses, model, turn)
        model.to(device)
        with acting(defenses, model, turn, metrics) as act:
            metrics["train_loss"] = train(model, dataset, batches, turn.facts, device, act)
        metrics |= released(defenses, model.cpu(), sent, turn)
    return metrics
