"""FedLeak measures what federated learning gives away.

from fedleak import audit, load_scenario, report, run

directory = run(load_scenario("scenarios/quickstart.toml"))
audit(directory)
print(report(directory))
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
__all__ = ["audit", "load_scenario", "report", "run"]

if TYPE_CHECKING:
    from fedleak.auditor import audit
    from fedleak.federation import run
    from fedleak.reporting import write_page as report
    from fedleak.scenario import load_scenario


_HOMES = {
    "audit": ("fedleak.auditor", "audit"),
    "load_scenario": ("fedleak.scenario", "load_scenario"),
    "report": ("fedleak.reporting", "write_page"),
    "run": ("fedleak.federation", "run"),
}


def __getattr__(name: str) -> Any:
    # Imported on first use: torch alone takes seconds, `fedleak --help` should not.
    if name not in _HOMES:
        raise AttributeError(f"module 'fedleak' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
