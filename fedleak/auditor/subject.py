"""What is audited: an architecture, the data's shape and, where there is one, the truth."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict
from torch import Tensor, nn

from clients.defenses import Turn
from clients.local_round import local_round
from fedleak.auditor.participants import Participants
from fedleak.components import CUSTOM_KIND, import_object
from fedleak.errors import MeasureFailed, Problem, RoundRefused, ScenarioError
from fedleak.measures import Release
from fedleak.models import CustomModel, normalised
from fedleak.records import Dataset, DataSplits, Observation, Truth, members_of, partition_of
from fedleak.scenario import Prepared, Scenario, prepare

ReleaseOf = Callable[[Observation, int, str], Release | None]
TruthOf = Callable[[int, str], Truth | None]


@dataclass(frozen=True)
class Subject:
    """What the auditor must know beside the captures.

    Attributes:
        model: The architecture; its parameter values mean nothing.
        input_shape: ``*input`` of one sample.
        classes: Number of classes.
        seed: Fixes the attacks' random draws.
        truth: Gives a client's samples in a round, or None where nobody knows them or, in
            batches that are sampled, there were none.
            Scoring calls it, and measures that need it; no attack is given it.
        facts: Training facts that take precedence over a capture's.
        assumptions: What the user stated of a foreign app, by name; reconstructions
            made under other statements are kept apart.
        vocabulary: Where samples are texts, the word of each token.
        notes: Sentences that a reader of the scores must know.
        data: The federation's samples, where they are known. Only measures are given them.
        release: By observation, round and client: what the client would release of other
            samples; None where nobody knows how it trains. Only measures are given it.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    classes: int
    seed: int
    truth: TruthOf
    facts: Mapping[str, float] = field(default_factory=dict)
    assumptions: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    data: DataSplits | None = None
    release: ReleaseOf | None = None


def subject_of_scenario(scenario: Scenario, took_part: Participants | None = None) -> Subject:
    """Everything from the scenario that made the run.

    Args:
        scenario: The scenario.
        took_part: Of a deployment, its clients: there is truth for those that opted in.
    """
    prepared = prepare(scenario)

    def truth(round: int, client: str) -> Truth | None:
        partition = partition_of(client)
        if partition is None or (took_part and client not in took_part.opted_in):
            return None
        truth = prepared.truth(partition, round)
        return truth if len(truth.labels) else None

    return Subject(
        model=prepared.model(),
        input_shape=prepared.splits.train.input_shape,
        classes=prepared.splits.train.classes,
        seed=scenario.seed,
        truth=_of_sums(truth),
        vocabulary=prepared.splits.train.vocabulary,
        notes=prepared.notes,
        # A deployment's server knows no more than the data set that it holds for audits.
        data=prepared.splits if took_part is None or scenario.federation.audit_data else None,
        release=partial(_release, prepared),
    )


def _of_sums(truth: TruthOf) -> TruthOf:
    """Behind a sum of several clients' updates is the union of their samples."""

    def union(round: int, client: str) -> Truth | None:
        truths = [truth(round, member) for member in members_of(client)]
        known = [each for each in truths if each is not None]
        if len(known) < len(truths):
            return None
        if len(known) == 1:
            return known[0]
        return Truth(
            inputs=np.concatenate([each.inputs for each in known]),
            labels=np.concatenate([each.labels for each in known]),
        )

    return union


def _release(
    prepared: Prepared, observation: Observation, round: int, client: str
) -> Release | None:
    partition = partition_of(client)
    if partition is None:
        return None

    def released(truth: Truth, seed: int) -> dict[str, Tensor]:
        train = prepared.splits.train
        model = prepared.model()
        model.load_state_dict({**observation.parameters, **observation.buffers})
        turn = Turn(
            seed=seed,
            client=partition,
            round=round,
            rounds=prepared.scenario.federation.rounds,
            facts=observation.facts,
            fresh=prepared.fresh,
            state=RecordDict(),
        )
        try:
            local_round(
                model,
                Dataset(truth.inputs, truth.labels, train.classes, vocabulary=train.vocabulary),
                [np.arange(len(truth.labels))],
                prepared.scenario.client.defenses,
                turn,
                torch.device("cpu"),
            )
        except RoundRefused as refusal:
            raise MeasureFailed(f"the client refuses the round: {refusal}") from refusal
        return {
            name: (observation.parameters[name].cpu().double() - weight.detach().double())
            / observation.facts.lr
            for name, weight in model.named_parameters()
        }

    return released


def subject_of_model(
    model: str,
    input_shape: tuple[int, ...],
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    truth: str | None = None,
    facts: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Subject:
    """From a model of the user's own, for captures of somebody else's Flower app.

    Attacks search and scores compare pixels in [0, 1]. An app that normalises its inputs
    before the model sees them says so with ``mean`` and ``std``.

    Args:
        model: ``"module:Class"``, called without arguments.
        input_shape: Shape of one sample, for example ``(3, 32, 32)``.
        mean: Per channel, what the app subtracts from pixels in [0, 1]; 0 by default.
        std: Per channel, what it divides them by after that; 1 by default.
        truth: ``"module:callable"`` that takes a round and a client's name and returns
            the pair of inputs ``(b, *input)`` in [0, 1], before normalisation, and
            labels ``(b,)`` that the client trained on, or None. Without it nothing can
            be scored.
        facts: Training facts that take precedence over a capture's.
        seed: Fixes the attacks' random draws.

    Raises:
        ScenarioError: The model or the truth does not import, or the model does not
            take such inputs.
    """
    if not re.fullmatch(CUSTOM_KIND, model):
        raise ScenarioError(Problem("--model", f"{model!r} is not of the form module:Class"))
    architecture = CustomModel(kind=model, mean=mean, std=std)
    try:
        network = normalised(architecture, architecture.build(input_shape, 0), input_shape)
    except ScenarioError as error:
        # A user of the command line wrote no scenario: name the options.
        names = {"model.mean": "--mean", "model.std": "--std"}
        raise ScenarioError(
            [Problem(names.get(p.path, "--model"), p.message) for p in error.problems]
        ) from error
    try:
        with torch.no_grad():
            output = network.eval()(torch.zeros(2, *input_shape))
    except Exception as error:
        raise ScenarioError(
            Problem("--input-shape", f"{model} does not take inputs {input_shape}: {error}")
        ) from error
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        raise ScenarioError(
            Problem("--model", f"{model} must give logits (samples, classes) and does not")
        )
    assumptions = {"model": model, "mean": mean, "std": std, "facts": dict(facts or {})}
    return Subject(
        model=network,
        input_shape=input_shape,
        classes=output.shape[1],
        seed=seed,
        truth=_imported_truth(truth, input_shape) if truth else lambda round, client: None,
        facts=facts or {},
        assumptions={name: value for name, value in assumptions.items() if value},
    )


def _imported_truth(spec: str, input_shape: tuple[int, ...]) -> TruthOf:
    try:
        function = import_object(spec)
    except ImportError as error:
        raise ScenarioError(Problem("--truth", str(error))) from error

    def truth(round: int, client: str) -> Truth | None:
        pair = function(round, client)
        if pair is None:
            return None
        inputs = np.ascontiguousarray(pair[0], dtype=np.float32)
        labels = np.ascontiguousarray(pair[1], dtype=np.int64)
        where = f"{spec} for round {round}, {client}"
        if labels.ndim != 1 or inputs.shape != (len(labels), *input_shape):
            raise ScenarioError(
                Problem(
                    "--truth",
                    f"{where} gave inputs {inputs.shape} and labels {labels.shape}; they must be "
                    f"(samples, {', '.join(map(str, input_shape))}) and (samples,)",
                )
            )
        if inputs.size and not (inputs.min() >= 0 and inputs.max() <= 1):
            raise ScenarioError(
                Problem(
                    "--truth",
                    f"{where} gave values from {inputs.min():g} to {inputs.max():g}; pixels in "
                    "[0, 1], before any normalisation, are expected",
                )
            )
        return Truth(inputs=inputs, labels=labels)

    return _of_sums(truth)
