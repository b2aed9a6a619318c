"""FedLeak measures what federated learning gives away.

from fedleak import audit, load_scenario, report, run

directory = run(load_scenario("scenarios/quickstart.toml"))
audit(directory)
print(report(directory))

A study, which is a scenario with `[matrix]` or `repeats`, is loaded with `load_study`;
`run` audits its runs as well and makes its table.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Read by flwr and ray when they are imported: no telemetry, no look for updates.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

__version__ = "0.1.0"
__all__ = ["audit", "load_scenario", "load_study", "report", "run"]

if TYPE_CHECKING:
    from fedleak.auditor import audit
    from fedleak.reporting import report
    from fedleak.scenario import load_scenario, load_study
    from fedleak.studies import run


_HOMES = {
    "audit": ("fedleak.auditor", "audit"),
    "load_scenario": ("fedleak.scenario", "load_scenario"),
    "load_study": ("fedleak.scenario", "load_study"),
    "report": ("fedleak.reporting", "report"),
    "run": ("fedleak.studies", "run"),
}


def __getattr__(name: str) -> Any:
    # Imported on first use: torch alone takes seconds, `fedleak --help` should not.
    if name not in _HOMES:
        raise AttributeError(f"module 'fedleak' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
