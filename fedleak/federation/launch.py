"""Running a scenario's federation, start to finish."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clients.app import client_app
from fedleak.captures import CaptureStore
from fedleak.errors import Problem, QuorumLost, ScenarioError
from fedleak.federation.inline import run_inline
from fedleak.federation.resources import check_resources
from fedleak.scenario import Scenario, prepare
from fedleak.scenario.run_directory import new_run
from server_strategies.app import OnRound, server_app


def run(
    scenario: Scenario,
    *,
    runs: str | Path = "runs",
    directory: str | Path | None = None,
    on_round: OnRound | None = None,
) -> Path:
    """Run a federation and capture what its central party receives.

    Everything that can be refused is refused before the run directory is made.

    Args:
        scenario: What to run.
        runs: Where the run directory ``<name>-<utc time>`` is made.
        directory: Exact run directory to make instead; must not exist.
        on_round: Called after each round with its number and what was measured.

    Returns:
        The run directory.

    Raises:
        ScenarioError: It is a deployment's, the data is not there, a client is left
            without samples, the model does not take the data, or an attack cannot work
            on it.
        ResourceError: Not enough memory or disk, or the directory exists.
        QuorumLost: Too few clients delivered; committed rounds are kept.
    """
    if scenario.federation.engine == "deployment":
        raise ScenarioError(
            Problem(
                "federation.engine",
                "a deployment is started with `fedleak deploy processes` or `fedleak deploy up`; "
                "--set federation.engine=inline runs it here",
            )
        )
    prepared = prepare(scenario)
    check_resources(prepared, Path(runs if directory is None else directory))
    layout = new_run(scenario, Path(runs), None if directory is None else Path(directory))
    store = CaptureStore(layout.root)
    server = server_app(lambda _: scenario, lambda *_: store, on_round)
    client = client_app(lambda _: scenario)
    federation = scenario.federation
    try:
        with quiet(layout.log):
            if federation.engine == "inline":
                run_inline(server, client, federation.clients)
            else:
                from fedleak.federation.ray_engine import run_ray

                run_ray(
                    server,
                    client,
                    federation.clients,
                    federation.cpus_per_client,
                    federation.gpus_per_client,
                )
    except QuorumLost as error:
        raise QuorumLost(f"{error}. Captures so far and the log: {layout.root}") from error
    return layout.root


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send Flower's and Ray's output to a log file instead of the terminal.

    Ray's processes write to the standard error they inherit, so the descriptor itself
    is turned over, not only Python's loggers.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
        handler = logging.StreamHandler(log.open("a", encoding="utf-8"))
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        loggers = [logging.getLogger(name) for name in ("flwr", "ray")]
        before = [(logger.handlers, logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.handlers, logger.propagate = [handler], False
        try:
            yield
        finally:
            for logger, (handlers, propagate) in zip(loggers, before, strict=True):
                logger.handlers, logger.propagate = handlers, propagate
            handler.close()
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
