"""The ``fedleak`` command. Commands parse, call and print; the work is done elsewhere."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from fedleak import __version__
from fedleak.errors import ExpectationMissed, FedLeakError, ScenarioError, nearest

if TYPE_CHECKING:
    from fedleak.auditor import Audited
    from fedleak.scenario.catalogue import Entry

app = typer.Typer(
    name="fedleak",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Measures what federated learning gives away: run or deploy a federation, "
    "intercept its updates, attack them, and see what leaked.\n\n"
    "Start with: [bold]fedleak run scenarios/quickstart.toml[/]",
)
_INTERRUPTED = 130  # what typer gives for Ctrl-C, as shells do
out = Console(highlight=False)
_DEFAULT_WIDTH = 12

ScenarioPath = Annotated[Path, typer.Argument(help="Scenario file (TOML).")]
RunPath = Annotated[Path, typer.Argument(help="Run directory.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a value of the scenario."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def main() -> None:
    """Entry point: a user's mistake is told in a sentence, a bug shows its traceback."""
    try:
        app(prog_name="fedleak")
    except FedLeakError as error:
        width = Console(stderr=True).width - 1
        for line in _explain(error):
            # Paths and key paths stay whole, to be copied.
            print(
                textwrap.fill(
                    line,
                    width,
                    subsequent_indent="    ",
                    break_long_words=False,
                    break_on_hyphens=False,
                ),
                file=sys.stderr,
            )
        sys.exit(error.exit_code)
    except SystemExit as leaving:
        if leaving.code == _INTERRUPTED:
            # Flower's server thread would wait an hour for replies, and Python
            # for the thread; what is committed is on disk.
            print("Interrupted. Finished rounds and cells are kept.", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(_INTERRUPTED)
        raise


def _explain(error: FedLeakError) -> list[str]:
    if isinstance(error, ScenarioError):
        count = len(error.problems)
        asked = all(problem.path.startswith("--") for problem in error.problems)
        place = "command" if asked else "scenario"
        head = f"{count} problem{'' if count == 1 else 's'} in the {place}:"
        return [head, *(f"  {problem}" for problem in error.problems)]
    return [f"Error: {error}"]


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write.")] = Path("scenario.toml"),
) -> None:
    """Write a commented scenario to start from.

    Example: fedleak init my-scenario.toml
    """
    from fedleak.scenario.template import write_template

    write_template(path)
    out.print(f"Wrote {path}. Next: fedleak run {path}", markup=False, soft_wrap=True)


@app.command()
def validate(scenario: ScenarioPath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Check a scenario: its values, its data, its model, the resources it needs.

    Example: fedleak validate scenarios/quickstart.toml --set client.batch_size=4
    """
    with _waiting("Checking the scenario"):
        from fedleak.federation.resources import estimate
        from fedleak.scenario import load_scenario, prepare

        prepared = prepare(load_scenario(scenario, set_ or ()))
        needed = estimate(prepared)
    sizes = [len(partition) for partition in prepared.partitions]
    if as_json:
        _print_json({"valid": True, "samples_per_client": sizes, **dataclasses.asdict(needed)})
        return
    out.print(f"{scenario} is valid.", markup=False, soft_wrap=True)
    least, most = min(sizes), max(sizes)
    held = str(most) if least == most else f"{least} to {most}"
    out.print(
        f"Clients: {len(sizes)}, with {held} training samples each.\n"
        f"Memory: at most {needed.memory / 2**20:.0f} MiB for data, models and updates.\n"
        f"Disk: at most {needed.disk / 2**20:.0f} MiB for captures."
    )


@app.command()
def run(
    scenario: ScenarioPath,
    set_: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Where run directories are made.")] = Path("runs"),
    directory: Annotated[
        Path | None, typer.Option("--out", help="Exact run directory; must not exist.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a scenario: federation, interception, audit, report.

    Example: fedleak run scenarios/quickstart.toml --set federation.rounds=2
    """
    with _progress() as progress:
        task = progress.add_task("Loading", total=None, note="")
        from fedleak.federation import run as run_federation
        from fedleak.scenario import load_scenario

        checked = load_scenario(scenario, set_ or ())
        progress.update(task, description="Federation", total=checked.federation.rounds)

        def on_round(number: int, metrics: dict[str, float]) -> None:
            accuracy = metrics.get("accuracy")
            note = "" if accuracy is None else f"accuracy {accuracy:.0%}"
            progress.update(task, completed=number, note=note)

        place = run_federation(checked, runs=runs, directory=directory, on_round=on_round)
        audited = _audit(progress, place) if checked.audit.attacks else None
    if audited is None:
        captured = (
            f"Captured {checked.federation.rounds} rounds in {place}; no attack was asked for."
        )
        if as_json:
            _print_json({"run": str(place)})
        else:
            out.print(captured, markup=False, soft_wrap=True)
        return
    _finish(place, audited, as_json)


@app.command()
def audit(
    directory: RunPath,
    attack: Annotated[
        list[str] | None, typer.Option(help="Attack to run; default those of the scenario.")
    ] = None,
    rounds: Annotated[str | None, typer.Option(help="Rounds to audit, for example 1,3.")] = None,
    clients: Annotated[
        str | None, typer.Option(help="Clients to audit, by partition id (2,5) or by name.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="ATTACK.KEY=VALUE", help="Set an attack's parameter."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="For captures of another Flower app: its model, as module:Class."),
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="With --model: one sample's shape, for example 3,32,32.")
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="With --model: per channel, what the app subtracts from pixels in [0, 1] before "
            "its model sees them, for example 0.5,0.5,0.5."
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(help="With --model: per channel, what it divides them by after that."),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            help="With --model: module:callable that gives (inputs, labels) for (round, client), "
            "to score against; inputs in [0, 1], before normalisation."
        ),
    ] = None,
    fact: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="With --model: a training fact that the capture lacks or has wrong (lr=0.1).",
        ),
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where attacks run: inline, or ray for a pool of actors.")
    ] = None,
    actors: Annotated[int | None, typer.Option(help="With ray: actors at most.")] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option(help="With ray: GPUs, or a share of one, per actor.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="With ray: an existing cluster's address.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Audit a running federation round by round.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Attack the captures of a run and score what came out. Finished cells are kept.

    Example: fedleak audit runs/quickstart-20260102T030405 --attack gs --rounds 1

    Example: fedleak audit RUN --executor ray --actors 2 --follow

    Example: fedleak audit captured --model task:Net --input-shape 3,32,32 --attack gs
    """
    with _progress() as progress:
        from fedleak.auditor.requests import (
            parse_attacks,
            parse_clients,
            parse_rounds,
            parse_settings,
            parse_subject,
        )

        attacks = parse_attacks(directory, attack or [], set_ or [])
        subject = parse_subject(model, input_shape, mean, std, truth, fact or [])
        audited = _audit(
            progress,
            directory,
            following=follow,
            attacks=attacks,
            rounds=parse_rounds(rounds),
            clients=parse_clients(clients),
            subject=subject,
            settings=parse_settings(directory, executor, actors, gpus_per_actor, address),
        )
    _finish(directory, audited, as_json)


@app.command()
def report(directory: RunPath, as_json: AsJson = False) -> None:
    """Write the page of an audited run again and print its summary.

    Example: fedleak report runs/quickstart-20260102T030405
    """
    _print_report(directory, as_json)


@app.command(name="list")
def list_(
    table: Annotated[
        str | None, typer.Argument(help="One table of the scenario, for example attack.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what a scenario can name: data, models, strategies, attacks, scores.

    Example: fedleak list attack
    """
    with _waiting("Loading"):
        from fedleak.scenario.catalogue import catalogue

        entries = catalogue()
    if table is not None:
        if table not in entries:
            listed = ", ".join(entries)
            near = nearest(table, entries)
            raise typer.BadParameter(f"there is no table {table!r}; there are: {listed}.{near}")
        entries = {table: entries[table]}
    if as_json:
        _print_json(
            {
                name: [dataclasses.asdict(entry) for entry in group]
                for name, group in entries.items()
            }
        )
        return
    if table is not None:
        _print_parameters(entries[table])
        return
    kinds = [entry.kind for group in entries.values() for entry in group]
    for name, group in entries.items():
        out.print(f"[bold]{name}[/]")
        grid = _grid(kinds)
        for entry in group:
            grid.add_row(f"[cyan]{entry.kind}[/]", escape(entry.summary))
        out.print(Padding(grid, (0, 0, 1, 2)))
    out.print("Parameters: fedleak list TABLE, for example fedleak list attack")


@app.command()
def schema() -> None:
    """Print the scenario's JSON Schema, for editors.

    Example: fedleak schema > scenario.schema.json
    """
    from fedleak.scenario import Scenario

    _print_json(Scenario.model_json_schema())


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@contextmanager
def _progress() -> Iterator[Progress]:
    # A copy of standard error: while a federation runs, the descriptor itself goes to
    # the run's log.
    with os.fdopen(os.dup(2), "w") as terminal:
        progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, ratio=1)),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(file=terminal, force_terminal=sys.stderr.isatty() or None),
            expand=True,
        )
        with progress:
            try:
                yield progress
            except FedLeakError:
                # What went wrong is told in words.
                progress.live.transient = True
                raise


def _waiting(text: str) -> Any:
    return Console(stderr=True).status(text)


def _audit(
    progress: Progress, directory: Path, *, following: bool = False, **request: Any
) -> Audited:
    task = progress.add_task("Audit", total=None, note="")
    from fedleak.auditor import audit as audit_run
    from fedleak.auditor import follow
    from fedleak.reporting import write_page

    def on_plan(cells: int) -> None:
        progress.update(task, completed=0, total=cells or None)

    def on_cell(state: Any) -> None:
        speed = progress.tasks[task].speed
        rate = "" if speed is None else f"{60 * speed:.0f}/min"
        best = "" if state.best_psnr is None else f"best {state.best_psnr:.0f} dB"
        note = ", ".join(filter(None, (rate, best)))
        progress.update(task, completed=state.done, total=state.total, note=note)

    def on_audited(_: Audited) -> None:
        write_page(directory)

    if following:
        audited = follow(
            directory, on_audited=on_audited, on_plan=on_plan, on_cell=on_cell, **request
        )
    else:
        audited = audit_run(directory, on_plan=on_plan, on_cell=on_cell, **request)
    if progress.tasks[task].total is None:
        progress.update(task, completed=1, total=1, note="every attack was finished before")
    return audited


def _grid(names: Iterable[str]) -> Table:
    """A table without lines, indented, whose first column has room for any of the names."""
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, min_width=max((len(name) for name in names), default=0))
    return grid


def _print_parameters(entries: Sequence[Entry]) -> None:
    names = [parameter.name for entry in entries for parameter in entry.parameters]
    for entry in entries:
        out.print(f"[bold cyan]{entry.kind}[/]")
        out.print(Padding(escape(entry.summary), (0, 0, 0, 2)))
        grid = _grid(names)
        grid.add_column(overflow="fold", min_width=_DEFAULT_WIDTH, max_width=_DEFAULT_WIDTH)
        for parameter in entry.parameters:
            default = "required" if parameter.default is None else f"= {parameter.default}"
            grid.add_row(parameter.name, escape(default), escape(parameter.description))
        if entry.parameters:
            out.print(Padding(grid, (0, 0, 0, 2)))
        out.print()


def _print_json(content: Any) -> None:
    print(json.dumps(_without_infinities(content), indent=1, allow_nan=False))


def _without_infinities(content: Any) -> Any:
    """JSON has no word for infinity and NaN: null stands for them."""
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, dict):
        return {key: _without_infinities(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_infinities(value) for value in content]
    return content


def _finish(directory: Path, audited: Audited, as_json: bool) -> None:
    _print_report(directory, as_json)
    missed = sum(not verdict.met for verdict in audited.verdicts)
    if missed:
        raise ExpectationMissed(f"{missed} of {len(audited.verdicts)} expectations were missed")


def _print_report(directory: Path, as_json: bool) -> None:
    from fedleak.reporting import summary, terminal_report, write_page

    page = write_page(directory)
    if as_json:
        cells = [dataclasses.asdict(row) for row in summary(directory)]
        _print_json({"run": str(directory), "page": str(page), "cells": cells})
        return
    out.print(terminal_report(directory))
    out.print(f"\nPage: {page}", markup=False, soft_wrap=True)
