"""FedLeak measures what federated learning gives away.

    from fedleak import audit, load_scenario, report, run

    directory = run(load_scenario("scenarios/quickstart.toml"))
    audit(directory)
    print(report(directory))
"""

from __future__ import annotations

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


def __getattr__(name: str) -> Any:
    # Imported on first use: torch alone takes seconds, `fedleak --help` should not.
    if name == "load_scenario":
        from fedleak.scenario import load_scenario

        return load_scenario
    if name == "run":
        from fedleak.federation import run

        return run
    if name == "audit":
        from fedleak.auditor import audit

        return audit
    if name == "report":
        from fedleak.reporting import write_page

        return write_page
    raise AttributeError(f"module 'fedleak' has no attribute {name!r}")
