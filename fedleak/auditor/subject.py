"""What is audited: an architecture, the data's shape and, where there is one, the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from fedleak.components import import_object
from fedleak.errors import Problem, ScenarioError
from fedleak.models import CustomModel
from fedleak.records import Truth, partition_of
from fedleak.scenario import Scenario, prepare

TruthOf = Callable[[int, str], Truth | None]


@dataclass(frozen=True)
class Subject:
    """What the auditor must know beside the captures.

    Attributes:
        model: The architecture; its parameter values mean nothing.
        input_shape: ``*input`` of one sample.
        classes: Number of classes.
        seed: Fixes the attacks' random draws.
        truth: Gives a client's samples in a round, or None where nobody knows them.
            Only scoring calls it.
        facts: Training facts to assume where a capture has none.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    classes: int
    seed: int
    truth: TruthOf
    facts: Mapping[str, float] = field(default_factory=dict)


def subject_of_scenario(scenario: Scenario) -> Subject:
    """Everything from the scenario that made the run."""
    prepared = prepare(scenario)

    def truth(round: int, client: str) -> Truth | None:
        partition = partition_of(client)
        return None if partition is None else prepared.truth(partition, round)

    return Subject(
        model=prepared.model(),
        input_shape=prepared.splits.train.input_shape,
        classes=prepared.splits.train.classes,
        seed=scenario.seed,
        truth=truth,
    )


def subject_of_model(
    model: str,
    input_shape: tuple[int, ...],
    *,
    truth: str | None = None,
    facts: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Subject:
    """From a model of the user's own, for captures of somebody else's Flower app.

    Args:
        model: ``"module:Class"``, called without arguments.
        input_shape: Shape of one sample, for example ``(3, 32, 32)``.
        truth: ``"module:callable"`` that takes a round and a client's name and returns
            the pair of inputs ``(b, *input)`` and labels ``(b,)`` that the client
            trained on, or None. Without it nothing can be scored.
        facts: Training facts to assume where a capture has none.
        seed: Fixes the attacks' random draws.

    Raises:
        ScenarioError: The model or the truth does not import, or the model does not
            take such inputs.
    """
    network = CustomModel(kind=model).build(input_shape, 0)
    try:
        with torch.no_grad():
            output = network.eval()(torch.zeros(1, *input_shape))
    except Exception as error:
        raise ScenarioError(
            Problem("--input-shape", f"{model} does not take inputs {input_shape}: {error}")
        ) from error
    return Subject(
        model=network,
        input_shape=input_shape,
        classes=int(output.shape[-1]),
        seed=seed,
        truth=_imported_truth(truth) if truth else lambda round, client: None,
        facts=facts or {},
    )


def _imported_truth(spec: str) -> TruthOf:
    try:
        function = import_object(spec)
    except ImportError as error:
        raise ScenarioError(Problem("--truth", str(error))) from error

    def truth(round: int, client: str) -> Truth | None:
        pair = function(round, client)
        if pair is None:
            return None
        inputs, labels = pair
        return Truth(
            inputs=np.asarray(inputs, dtype=np.float32), labels=np.asarray(labels, dtype=np.int64)
        )

    return truth
