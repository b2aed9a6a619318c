"""The Flower app of a deployment: the scenario, and two lines for each side.

The apps themselves are imported from the FedLeak that is installed where they run. Sent
along, FedLeak's code would hide that a client has another version of it.
"""

from __future__ import annotations

from pathlib import Path

import tomli_w

import fedleak
from fedleak.scenario import Scenario, to_toml

_SERVER = '''"""The server's side."""

from pathlib import Path

from fedleak.scenario import load_scenario
from server_strategies.app import server_app, store_of_run

SCENARIO = Path(__file__).with_name("scenario.toml")
app = server_app(lambda context: load_scenario(SCENARIO), store_of_run)
'''
_CLIENT = '''"""A client's side."""

from pathlib import Path

from clients.app import client_app
from fedleak.scenario import load_scenario

SCENARIO = Path(__file__).with_name("scenario.toml")
app = client_app(lambda context: load_scenario(SCENARIO))
'''
_PACKAGE = "deployed"


def write_bundle(folder: Path, scenario: Scenario, directory: Path) -> None:
    """Write the app that ``flwr run`` sends to the SuperLink and its nodes.

    Args:
        folder: Where to write it.
        scenario: What is run.
        directory: The run directory, on the server.
    """
    project = {
        "project": {
            "name": "fedleak-deployment",
            "version": fedleak.__version__,
            "license": "Apache-2.0",
            "dependencies": [],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedleak",
                    "components": {
                        "serverapp": f"{_PACKAGE}.server:app",
                        "clientapp": f"{_PACKAGE}.client:app",
                    },
                    "config": {"directory": str(directory)},
                }
            }
        },
    }
    package = folder / _PACKAGE
    package.mkdir()
    (folder / "pyproject.toml").write_text(tomli_w.dumps(project))
    (package / "__init__.py").write_text('"""A scenario to be run."""\n')
    (package / "server.py").write_text(_SERVER)
    (package / "client.py").write_text(_CLIENT)
    (package / "scenario.toml").write_text(to_toml(scenario))
