"""The ServerApp: runs the rounds under the scenario's central party."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedleak.captures import CaptureStore
from fedleak.models.evaluation import evaluate
from fedleak.scenario import Scenario, prepare, scenario_of_run
from fedleak.scenario.run_directory import new_run
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
        federation = scenario.federation
        roster: dict[int, int] = {}
        aggregate = scenario.aggregation.build(
            clients=federation.asked, evaluate=scenario.client.holdout > 0
        )
        sample = SampleByPartition(
            aggregate,
            seed=scenario.seed,
            clients=federation.clients,
            clients_per_round=federation.asked,
            roster=roster,
        )
        strategy = scenario.server.wrap(sample, store, quorum=federation.quorum, roster=roster)

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
            evaluate_fn=after_round,
        )

    return app


def store_of_run(context: Context, scenario: Scenario) -> CaptureStore:
    """A new run directory under the ``runs`` directory of the run config."""
    return CaptureStore(new_run(scenario, Path(str(context.run_config["runs"]))).root)


app = server_app(lambda context: scenario_of_run(context.run_config), store_of_run)
