"""The ServerApp: runs the rounds under the scenario's central party."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedleak.captures import CaptureStore, RunLayout, write_atomic
from fedleak.models.evaluation import evaluate
from fedleak.scenario import Prepared, Scenario, prepare, scenario_of_run
from fedleak.scenario.run_directory import new_run
from server_strategies.roster import Roster
from server_strategies.sampling import SampleByPartition

OnRound = Callable[[int, dict[str, float]], None]


def server_app(
    scenario_of: Callable[[Context], Scenario],
    store_of: Callable[[Context, Scenario], CaptureStore],
    on_round: OnRound | None = None,
) -> ServerApp:
    """Make the ServerApp of a federation.

    Args:
        scenario_of: Tells which scenario a run is about.
        store_of: Tells where its captures go.
        on_round: Called after each round with its number and what was measured.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        scenario = scenario_of(context)
        prepared = prepare(scenario)
        store = store_of(context, scenario)
        with _end_recorded(store.layout):
            federate(grid, scenario, prepared, store, on_round)

    return app


def federate(
    grid: Grid,
    scenario: Scenario,
    prepared: Prepared,
    store: CaptureStore,
    on_round: OnRound | None = None,
) -> None:
    """Run all rounds.

    Args:
        grid: Reaches the clients.
        scenario: What is run.
        prepared: The same, with its data.
        store: Where captures go.
        on_round: Called after each round with its number and what was measured.
    """
    federation = scenario.federation
    roster = Roster()

    def write_participants() -> None:
        record = json.dumps(roster.as_record(), indent=1)
        write_atomic(store.layout.participants, record.encode())

    sample = SampleByPartition(
        scenario.aggregation.build(
            evaluate=scenario.client.holdout > 0, asked=federation.asked, seed=scenario.seed
        ),
        seed=scenario.seed,
        clients=federation.clients,
        clients_per_round=federation.asked,
        roster=roster,
        patience=federation.patience,
        quorum=federation.quorum,
        on_met=write_participants,
    )
    strategy = scenario.server.wrap(
        sample,
        store,
        prepared.served(),
        quorum=federation.quorum,
        roster=roster,
        secure_aggregation=scenario.aggregation.secure_aggregation,
    )

    def after_round(round: int, arrays: ArrayRecord) -> MetricRecord | None:
        metrics: dict[str, float] = {}
        if federation.evaluate:
            model = prepared.model()
            model.load_state_dict(arrays.to_torch_state_dict())
            metrics = evaluate(model, prepared.splits.test)
        if round > 0:  # Flower calls once before the first round
            store.record_metrics(round, metrics)
            if on_round is not None:
                on_round(round, metrics)
        return MetricRecord(dict(metrics)) if metrics else None

    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(prepared.model().state_dict()),
        num_rounds=federation.rounds,
        timeout=federation.timeout,
        evaluate_fn=after_round,
    )


@contextmanager
def _end_recorded(layout: RunLayout) -> Iterator[None]:
    """Write down that a federation ended, and why if it was before its last round.

    Who follows it from outside learns it from there.
    """
    error, reason = "", ""
    try:
        yield
    except BaseException as raised:
        error, reason = type(raised).__name__, str(raised)
        raise
    finally:
        record = {"error": error, "reason": reason}
        write_atomic(layout.ended, json.dumps(record, indent=1).encode())


def store_of_run(context: Context, scenario: Scenario) -> CaptureStore:
    """A new run directory: the ``directory`` of the run config, else one under ``runs``."""
    config = context.run_config
    directory = Path(str(config["directory"])) if "directory" in config else None
    return CaptureStore(new_run(scenario, Path(str(config.get("runs"))), directory).root)


app = server_app(lambda context: scenario_of_run(context.run_config), store_of_run)
