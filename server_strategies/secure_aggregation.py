"""Secure aggregation, simulated: the central party learns sums over groups of clients only.

It sees of a group what a protocol such as SecAgg+ (Bell et al. 2020) would show: the mean of
its members' updates, weighted by their examples as FedAvg weighs them. Flower 1.41 has
SecAgg+ for its older driver API (`flwr.server.workflow`), not for strategies of the Message
API, so the sums are formed here from what clients send. What members disclose and report
beside it is not masked by such protocols; of numbers, the means over members are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from fedleak.records import Capture, TrainingFacts, sum_name


def groups_of(nodes: Sequence[int], size: int) -> list[list[int]]:
    """Nodes in order, in groups of at least ``size`` whose sizes differ by one at most.

    Fewer nodes than that are one group.
    """
    count = max(1, len(nodes) // size)
    bounds = [part * len(nodes) // count for part in range(count + 1)]
    return [list(nodes[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]


def summed(members: Sequence[Capture], aim: Capture) -> Capture:
    """The capture of a group's sum.

    With ``n_i`` examples and update ``u_i = (sent_i - received_i) / lr`` of member ``i``, its
    update is ``sum_i n_i u_i / sum_i n_i``. After one local step on ``b_i`` samples each
    that is the gradient of the union of all batches where ``b_i`` is in proportion to ``n_i``
    (equally many examples, or whole partitions as batches); else a sample of member ``i``
    weighs ``n_i / b_i``. After several steps it is the update of one client that takes as
    many steps on unions of batches to first order in the learning rate only.

    Its training facts are those of that one client: examples and batch sizes add up, and the
    steps are the most that a member took.

    Args:
        members: Those of the group that delivered, at least one.
        aim: The member whose model the sum is looked at from: what it was sent stands for
            the group, and the others' updates are put on top of that.
    """
    weights = [1.0 if m.facts is None else float(m.facts.examples) for m in members]
    received = {}
    for name, sent in aim.sent.items():
        change = sum(
            weight * np.subtract(m.received[name], m.sent[name], dtype=np.float64)
            for weight, m in zip(weights, members, strict=True)
        )
        mean = np.add(sent, np.asarray(change) / sum(weights), dtype=np.float64)
        received[name] = np.asarray(mean).astype(sent.dtype)
    shared = set.intersection(*(set(m.metrics) for m in members))
    seconds = [m.seconds for m in members if m.seconds is not None]
    return Capture(
        round=aim.round,
        client=sum_name([m.client for m in members]),
        sent=aim.sent,
        received=received,
        facts=_facts([m.facts for m in members if m.facts is not None], len(members)),
        metrics={name: fmean(m.metrics[name] for m in members) for name in sorted(shared)},
        seconds=fmean(seconds) if seconds else None,
    )


def _facts(facts: Sequence[TrainingFacts], members: int) -> TrainingFacts | None:
    if len(facts) < members:
        return None
    return dataclasses.replace(
        facts[0],
        steps=max(each.steps for each in facts),
        batch_size=sum(min(each.batch_size, each.examples) for each in facts),
        examples=sum(each.examples for each in facts),
    )
