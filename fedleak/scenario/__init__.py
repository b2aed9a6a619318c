"""Scenarios: schema, loading, expectations, and what a scenario stands for."""

from fedleak.scenario.loading import load_scenario, scenario_from, scenario_of_run, to_toml
from fedleak.scenario.prepare import Prepared, prepare
from fedleak.scenario.schema import Audit, Scenario

__all__ = [
    "Audit",
    "Prepared",
    "Scenario",
    "load_scenario",
    "prepare",
    "scenario_from",
    "scenario_of_run",
    "to_toml",
]
