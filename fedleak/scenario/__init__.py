"""Scenarios: schema, loading, expectations, and what a scenario stands for."""

from fedleak.scenario.loading import load_scenario, scenario_from, scenario_of_run, to_toml
from fedleak.scenario.prepare import Prepared, prepare
from fedleak.scenario.schema import Audit, Scenario, ScenarioFile
from fedleak.scenario.study import Claim, Study, StudyCell, StudyRun, check_cells, load_study

__all__ = [
    "Audit",
    "Claim",
    "Prepared",
    "Scenario",
    "ScenarioFile",
    "Study",
    "StudyCell",
    "StudyRun",
    "check_cells",
    "load_scenario",
    "load_study",
    "prepare",
    "scenario_from",
    "scenario_of_run",
    "to_toml",
]
