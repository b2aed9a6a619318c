"""Rows of the results: scores of reconstructions against the truth, and measured values.

The only place that holds both reconstructions and the truth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors.torch
import torch

from fedleak.attacks import Analytic
from fedleak.attacks.analytic import extracted_rows
from fedleak.auditor.cells import Outcome, reconstruction_of
from fedleak.auditor.observe import observe
from fedleak.auditor.subject import Subject
from fedleak.captures import CaptureStore, RunLayout, write_atomic
from fedleak.measures import EXTRACTION_SCORES, SAMPLE_SCORES, InputScore, extraction, match
from fedleak.records import Truth

Row = dict[str, Any]

_SAMPLE_SCORES = [score.model_validate({}) for score in SAMPLE_SCORES]
_EXTRACTION_SCORES = [score.model_validate({}) for score in EXTRACTION_SCORES]


def rows_of(layout: RunLayout, subject: Subject, outcome: Outcome) -> Iterator[Row]:
    """The rows of one finished cell: its scores, or the values that it measured."""
    if outcome.measure is None:
        yield from score(layout, subject, outcome)
    for value in outcome.values:
        yield {
            "cell": outcome.cell,
            "round": outcome.round,
            "client": outcome.client,
            "measure": outcome.measure,
            "attack": None,
            "match": -1,
            **value,
        }


def score(layout: RunLayout, subject: Subject, outcome: Outcome) -> Iterator[Row]:
    """Score one finished cell of an attack, if its truth is known.

    Yields one row per true sample and score, for the results table. A true sample that
    no reconstruction was matched to has no image scores; ``match`` is -1 there, and its
    label counts as not recovered. An extraction from gradient rows has scores as a
    whole, too, with ``sample`` -1. A reconstruction of another shape was made for a
    subject of another shape and is left out.
    """
    if outcome.status != "done":
        return
    truth = subject.truth(outcome.round, outcome.client)
    if truth is None:
        return
    reconstruction = reconstruction_of(layout, outcome)
    if reconstruction.inputs.shape[1:] != truth.inputs.shape[1:]:
        return
    _keep_original(layout, outcome.round, outcome.client, truth)
    if subject.vocabulary and not layout.vocabulary.exists():
        write_atomic(layout.vocabulary, json.dumps(subject.vocabulary).encode())
    cell = {
        "cell": outcome.cell,
        "round": outcome.round,
        "client": outcome.client,
        "attack": outcome.attack,
        "layer": None,
    }
    matches = match(reconstruction, truth)
    of_texts = truth.inputs.dtype == np.int64
    for metric in _SAMPLE_SCORES:
        if isinstance(metric, InputScore) and metric.of_texts != of_texts:
            continue
        values = metric.score(reconstruction, truth, matches)
        for sample, (matched, value) in enumerate(zip(matches, values, strict=True)):
            told = {"metric": metric.kind, "value": float(value)}
            yield {**cell, **told, "sample": sample, "match": int(matched)}
    if outcome.attack == Analytic.kind_name():
        capture = CaptureStore(layout.root).load(outcome.round, outcome.client)
        rows = extracted_rows(observe(capture, subject), torch.from_numpy(truth.inputs))
        counts = extraction(*rows, reconstruction, truth)
        for measure in _EXTRACTION_SCORES:
            told = {"metric": measure.kind, "value": measure.value(counts)}
            yield {**cell, **told, "sample": -1, "match": -1}


def _keep_original(layout: RunLayout, round: int, client: str, truth: Truth) -> None:
    """Keep the true samples beside the scores, for the report to show."""
    tensors = {
        "inputs": torch.from_numpy(truth.inputs),
        "labels": torch.from_numpy(truth.labels),
    }
    write_atomic(layout.original(round, client), safetensors.torch.save(tensors))
