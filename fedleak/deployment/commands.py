"""``fedleak deploy``. Commands parse and call; the work is done in the other modules."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedleak.scenario import Scenario

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Run a scenario as a real federation: SuperLink, SuperNodes and auditor, in "
    "containers or as processes.",
)

ScenarioPath = Annotated[Path, typer.Argument(help="Scenario file (TOML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a value of the scenario."),
]
Clients = Annotated[
    int | None, typer.Option(min=1, help="Number of clients; default the scenario's.")
]
Superlink = Annotated[str, typer.Option("--superlink", help="host:port of the SuperLink.")]
Private = Annotated[
    list[int] | None,
    typer.Option(help="Partition id of a client that does not opt in to being scored."),
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="The SuperLink's port on loopback.")]
Certificates = Annotated[
    Path | None,
    typer.Option(
        "--certs", envvar="FEDLEAK_CERTS", help="This party's folder of `fedleak deploy certs`."
    ),
]


@app.command()
def processes(
    scenario: ScenarioPath,
    set_: Overrides = None,
    clients: Clients = None,
    runs: Annotated[Path, typer.Option(help="Where the run directory is made.")] = Path("runs"),
    directory: Annotated[
        Path | None, typer.Option("--out", help="Exact run directory to make instead.")
    ] = None,
    port: Port = 8000,
    certs: Annotated[
        Path | None, typer.Option(help="Folder of `fedleak deploy certs`, for TLS.")
    ] = None,
    private: Private = None,
) -> None:
    """Run SuperLink, SuperNodes and auditor as processes on loopback.

    Example: fedleak deploy processes scenarios/deployment.toml --port 8100
    """
    from fedleak.deployment.auditing import audited_while_running
    from fedleak.deployment.processes import run_processes
    from fedleak.federation.resources import check_resources
    from fedleak.scenario import prepare

    _end_in_order()
    checked = _deployed(scenario, set_, clients)
    opted_in = _opted_in(private, checked.federation.clients)
    place = directory or runs / _run_name(checked)
    check_resources(prepare(checked), place)
    if checked.audit.tasks:
        print(f"Page, after each round: {place / 'report' / 'index.html'}")
    with audited_while_running(checked, place):
        run_processes(
            checked,
            place,
            port=port,
            certificates=certs,
            opted_in=opted_in,
        )


@app.command()
def up(
    scenario: ScenarioPath,
    set_: Overrides = None,
    clients: Clients = None,
    runs: Annotated[Path, typer.Option(help="Where the page is copied to.")] = Path("runs"),
    port: Port = 8000,
    certs: Annotated[
        Path | None, typer.Option(help="Folder of `fedleak deploy certs`, for TLS.")
    ] = None,
    gpus: Annotated[bool, typer.Option("--gpus", help="Give the auditor the GPUs.")] = False,
    private: Private = None,
    compose: Annotated[Path, typer.Option(help="Folder with FedLeak's Compose files.")] = Path(
        "docker"
    ),
) -> None:
    """Run server, clients and auditor in containers, from up to down.

    Example: fedleak deploy up scenarios/deployment.toml --clients 3
    """
    import tempfile

    from fedleak.deployment.containers import Project
    from fedleak.scenario import prepare

    _end_in_order()
    checked = _deployed(scenario, set_, clients)
    opted_in = _opted_in(private, checked.federation.clients)
    prepare(checked)
    name = _run_name(checked)
    with tempfile.TemporaryDirectory(prefix="fedleak-") as folder:
        project = Project(
            checked,
            name,
            Path(folder),
            compose=compose,
            port=port,
            certificates=certs,
            gpus=gpus,
            opted_in=opted_in,
        )
        project.up(runs / name / "report")


@app.command()
def certs(
    directory: Annotated[Path, typer.Argument(help="Where the parties' folders are made.")],
    clients: Annotated[int, typer.Option(min=1, help="Number of clients.")] = 3,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Further name or address under which clients reach the server, beside superlink "
            "and loopback."
        ),
    ] = None,
    owner: Annotated[
        int | None,
        typer.Option(help="User id that is to own the files: 10001 in containers; needs root."),
    ] = None,
) -> None:
    """Make certificates and keys, one folder for each party; again: renew them.

    Names and owner stay as they were.

    Example: fedleak deploy certs certs --clients 3 --owner 10001
    """
    from fedleak.deployment.certificates import make_certificates

    make_certificates(directory, clients, host or (), owner)
    print(f"Wrote {directory}. Each party gets its own folder; {directory / 'ca'} stays here.")


@app.command()
def superlink(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The one port.")] = 8000,
    database: Annotated[Path, typer.Option(help="File for its state.")] = Path("superlink.db"),
    certs: Certificates = None,
) -> None:
    """Run a SuperLink, as containers do.

    Example: fedleak deploy superlink --certs certs/server
    """
    from fedleak.deployment.flower import attend, superlink_command

    raise typer.Exit(attend(superlink_command(host, port, database, certs)))


@app.command()
def supernode(
    partition: Annotated[int, typer.Argument(min=0, help="The partition that it holds.")],
    clients: Annotated[int, typer.Option(min=1, help="Clients in the federation.")] = 3,
    server: Superlink = "127.0.0.1:8000",
    audit_data: Annotated[
        bool,
        typer.Option(
            "--audit-data",
            envvar="FEDLEAK_AUDIT_DATA",
            help="Opt in: the auditor may score this client against the audit data set.",
        ),
    ] = False,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="For its own ClientApp, on loopback.")
    ] = 9094,
    certs: Certificates = None,
) -> None:
    """Become a SuperNode, as containers do.

    Example: fedleak deploy supernode 0 --superlink 10.0.0.5:8000 --certs certs/client-000
    """
    from fedleak.deployment.flower import become, supernode_command
    from fedleak.errors import Problem, ScenarioError

    if partition >= clients:
        message = f"there is no partition {partition} among {clients} clients: 0 to {clients - 1}"
        raise ScenarioError(Problem("PARTITION", message))
    command = supernode_command(
        server, partition, clients, audit_data=audit_data, port=port, certificates=certs
    )
    become(command)


@app.command()
def register(
    certs: Annotated[
        Path,
        typer.Option(envvar="FEDLEAK_CERTS", help="The operator's folder, with clients' keys."),
    ],
    server: Superlink = "127.0.0.1:8000",
) -> None:
    """Register the clients' keys with a SuperLink; do it before they connect.

    Example: fedleak deploy register --certs certs/operator
    """
    from fedleak.deployment.starting import register_clients

    register_clients(server, certs)


@app.command()
def start(
    scenario: ScenarioPath,
    directory: Annotated[Path, typer.Option("--out", help="The run directory, on the server.")],
    set_: Overrides = None,
    clients: Clients = None,
    server: Superlink = "127.0.0.1:8000",
    certs: Certificates = None,
) -> None:
    """Start a run on a SuperLink and pass its log on until it ends.

    Example: fedleak deploy start scenarios/deployment.toml --out /runs/first
    """
    from fedleak.captures import RunLayout
    from fedleak.deployment.ending import raise_unless_completed
    from fedleak.deployment.starting import start_run

    checked = _deployed(scenario, set_, clients)
    ended = start_run(checked, directory, server, certificates=certs)
    raise_unless_completed(RunLayout(directory), *ended)


def _deployed(path: Path, overrides: list[str] | None, clients: int | None) -> Scenario:
    """The scenario as it is deployed, whatever engine it names."""
    from fedleak.scenario import load_scenario

    number = [] if clients is None else [f"federation.clients={clients}"]
    return load_scenario(path, [*(overrides or ()), *number, 'federation.engine="deployment"'])


def _opted_in(private: list[int] | None, clients: int) -> Callable[[int], bool]:
    """Whether the client of a partition opts in to being scored."""
    from fedleak.errors import Problem, ScenarioError

    for partition in private or ():
        if not 0 <= partition < clients:
            message = f"there is no client {partition}; partition ids go from 0 to {clients - 1}"
            raise ScenarioError(Problem("--private", message))
    return lambda partition: partition not in (private or ())


def _end_in_order() -> None:
    """Let what asks to end, as service managers do, take down what was started, as Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _run_name(scenario: Scenario) -> str:
    return f"{scenario.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
