"""The ClientApp: says who it is, trains, and evaluates on held-out samples."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from clients.defenses import Turn
from clients.local_round import local_round
from fedleak.errors import RoundRefused
from fedleak.models.evaluation import evaluate
from fedleak.records import DISCLOSURE, REFUSED
from fedleak.scenario import Scenario, prepare, scenario_of_run
from fedleak.seeding import derive, reproducible
from fedleak.versions import versions


def client_app(scenario_of: Callable[[Context], Scenario]) -> ClientApp:
    """Make the ClientApp of a federation.

    Args:
        scenario_of: Tells which scenario a run is about; evaluated on the client.
    """
    app = ClientApp()

    @app.query()
    def identify(message: Message, context: Context) -> Message:
        """Tell the server which partition this node holds, and with which versions.

        In a deployment it also says whether it opted in to be scored against the audit
        data set.
        """
        opted_in = bool(context.node_config.get("audit-data", False))
        identity = ConfigRecord(
            {"partition-id": _partition(context), "audit-data": opted_in, **versions()}
        )
        return Message(RecordDict({DISCLOSURE: identity}), reply_to=message)

    @app.train()
    def train_round(message: Message, context: Context) -> Message:
        """Train on this round's batches; return parameters, metrics and facts.

        A client whose defenses refuse the round answers with the reason.
        """
        scenario = scenario_of(context)
        prepared = prepare(scenario)
        client, (arrays, config) = _partition(context), _contents(message)
        round = _int(config["server-round"])
        mu = config.get("proximal-mu", 0.0)
        facts = prepared.facts(client, round, float(mu) if isinstance(mu, (int, float)) else 0.0)
        turn = Turn(
            seed=scenario.seed,
            client=client,
            round=round,
            rounds=scenario.federation.rounds,
            facts=facts,
            fresh=prepared.fresh,
            state=context.state,
        )
        model = prepared.model()
        model.load_state_dict(arrays.to_torch_state_dict())
        started = time.perf_counter()
        try:
            metrics = local_round(
                model,
                prepared.splits.train,
                prepared.batches(client, round),
                scenario.client.defenses,
                turn,
                torch.device(scenario.client.device),
            )
        except RoundRefused as refusal:
            return Message(Error(REFUSED, str(refusal)), reply_to=message)
        seconds = time.perf_counter() - started
        disclosed = {k.replace("_", "-"): v for k, v in dataclasses.asdict(facts).items()}
        content = RecordDict(
            {
                "arrays": ArrayRecord(model.state_dict()),
                "metrics": MetricRecord({"num-examples": facts.examples, **metrics}),
                DISCLOSURE: ConfigRecord({"partition-id": client, "seconds": seconds, **disclosed}),
            }
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate_round(message: Message, context: Context) -> Message:
        """Test the global model on this client's held-out samples."""
        scenario = scenario_of(context)
        prepared = prepare(scenario)
        arrays, _ = _contents(message)
        _, heldout = prepared.local(_partition(context))
        with reproducible(derive(scenario.seed, "evaluation")):
            model = prepared.model()
            model.load_state_dict(arrays.to_torch_state_dict())
            result = evaluate(model.to(scenario.client.device), prepared.splits.train, heldout)
        metrics = MetricRecord({"num-examples": len(heldout), **result})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def _partition(context: Context) -> int:
    return _int(context.node_config["partition-id"])


def _contents(message: Message) -> tuple[ArrayRecord, ConfigRecord]:
    return (
        next(iter(message.content.array_records.values())),
        next(iter(message.content.config_records.values())),
    )


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


app = client_app(lambda context: scenario_of_run(context.run_config))
