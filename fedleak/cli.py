"""The ``fedleak`` command. Commands parse, call and print; the work is done elsewhere."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shlex
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from fedleak.deployment.commands import app as deployment
from fedleak.errors import (
    ExpectationMissed,
    FedLeakError,
    ScenarioError,
    StudyIncomplete,
    nearest,
)

if TYPE_CHECKING:
    from rich.progress import TaskID

    from fedleak.auditor import Audited
    from fedleak.reporting.study import StudyResults
    from fedleak.scenario.catalogue import Entry
    from fedleak.studies import Progress as StudyProgress

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
app.add_typer(deployment, name="deploy")
_INTERRUPTED = 130  # what typer gives for Ctrl-C, as shells do
out = Console(highlight=False)
_DEFAULT_WIDTH = 12
_WIDEST_DEFAULT = 24

ScenarioPath = Annotated[Path, typer.Argument(help="Scenario or study file (TOML).")]
RunPath = Annotated[Path, typer.Argument(help="Directory of a run or a study.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a value of the scenario."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def main() -> None:
    """Entry point: a user's mistake is told in a sentence, a bug shows its traceback."""
    # Where forward-mode derivatives begin, torch warns of its own use of torch.jit.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    try:
        app(prog_name="fedleak")
    except FedLeakError as error:
        if "--json" in sys.argv and not isinstance(error, ExpectationMissed | StudyIncomplete):
            # Those two come after a report, which has what they say.
            _print_json({"error": type(error).__name__, "problems": _problems(error)})
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
            print(
                "Interrupted. Finished rounds and cells are kept.\n"
                "An audit goes on with `fedleak audit RUN`, a study with `fedleak run STUDY`.",
                file=sys.stderr,
                flush=True,
            )
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


def _problems(error: FedLeakError) -> list[dict[str, str]]:
    if isinstance(error, ScenarioError):
        return [dataclasses.asdict(problem) for problem in error.problems]
    return [{"path": "", "message": str(error)}]


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
        from fedleak.scenario import check_cells, prepare
        from fedleak.scenario.loading import is_study, read_document, scenario_from
        from fedleak.scenario.study import study_from

        document = read_document(scenario, set_ or ())
        study = study_from(document) if is_study(document) else None
        if study is not None:
            check_cells(study)
        cells = [c.scenario for c in study.cells] if study else [scenario_from(document)]
        repeats = study.repeats if study else 1
        sizes: list[int] = []
        memory = disk = 0
        notes: dict[str, None] = {}
        for cell in cells:
            prepared = prepare(cell)
            needed = estimate(prepared)
            memory = max(memory, needed.memory)
            kept = study is None or study.keep_captures
            disk = disk + needed.disk * repeats if kept else max(disk, needed.disk)
            sizes += map(len, prepared.partitions)
            notes |= dict.fromkeys(prepared.notes)
    if as_json:
        content: dict[str, Any] = {"valid": True}
        if study is None:
            content["samples_per_client"] = sizes
        else:
            content |= {"cells": [cell.name for cell in study.cells], "repeats": repeats}
        _print_json({**content, "memory": memory, "disk": disk, "notes": list(notes)})
        return
    out.print(f"{scenario} is valid.", markup=False, soft_wrap=True)
    least, most = min(sizes), max(sizes)
    held = str(most) if least == most else f"{least} to {most}"
    if study is None:
        out.print(f"Clients: {len(sizes)}, with {held} training samples each.")
    else:
        out.print(
            f"Study: {len(cells)} cells, {len(cells) * repeats} runs. "
            f"Clients: with {held} training samples each."
        )
    out.print(
        f"Memory: at most {memory / 2**20:.0f} MiB for data, models and updates.\n"
        f"Disk: at most {disk / 2**20:.0f} MiB for captures."
    )
    for note in notes:
        out.print(f"Note: {note}", style="yellow", markup=False)


@app.command()
def run(
    scenario: Annotated[
        Path,
        typer.Argument(
            help="Scenario or study file (TOML), or the directory of a study that was stopped."
        ),
    ],
    set_: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Where run directories are made.")] = Path("runs"),
    directory: Annotated[
        Path | None, typer.Option("--out", help="Exact run directory; must not exist.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a scenario: federation, interception, audit, report. Or a study of many.

    A scenario with a matrix or repeats is a study: all its cells are run, and one that
    fails does not stop the others. One that was stopped goes on, given its directory.

    Example: fedleak run scenarios/quickstart.toml --set federation.rounds=2

    Example: fedleak run scenarios/study.toml

    Example: fedleak run runs/study-20260102T030405
    """
    with _progress() as progress:
        task = progress.add_task("Loading", total=None, note="")
        from fedleak.captures import StudyLayout

        stopped = StudyLayout(scenario).exists
        if stopped and (set_ or directory):
            raise typer.BadParameter(
                "a study that was started goes on as it is, without --set and --out"
            )
        from fedleak.scenario.loading import is_study, read_document, scenario_from
        from fedleak.scenario.study import study_from

        document = {} if stopped else read_document(scenario, set_ or ())
        if stopped or is_study(document):
            from fedleak.studies import resume, run_study

            on_run = _on_study(progress, task)
            if stopped:
                place = resume(scenario, on_run)
            else:
                place = run_study(
                    study_from(document),
                    runs=runs,
                    directory=directory,
                    command=_command(scenario, set_ or ()),
                    on_run=on_run,
                )
            checked, audited = None, None
        else:
            from fedleak.federation import run as run_federation

            checked = scenario_from(document)
            progress.update(task, description="Federation", total=checked.federation.rounds)

            interrupted = _keep_interrupts()

            def on_round(number: int, metrics: dict[str, float]) -> None:
                interrupted()
                accuracy = metrics.get("accuracy")
                note = "" if accuracy is None else f"accuracy {accuracy:.0%}"
                progress.update(task, completed=number, note=note)

            place = run_federation(checked, runs=runs, directory=directory, on_round=on_round)
            audited = _audit(progress, place) if checked.audit.tasks else None
    if checked is None:
        _finish_study(place, as_json)
        return
    if audited is None:
        captured = (
            f"Captured {checked.federation.rounds} rounds in {place}; no audit was asked for."
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
    measure: Annotated[
        list[str] | None, typer.Option(help="Measure to compute; default those of the scenario.")
    ] = None,
    rounds: Annotated[str | None, typer.Option(help="Rounds to audit, for example 1,3.")] = None,
    clients: Annotated[
        str | None, typer.Option(help="Clients to audit, by partition id (2,5) or by name.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME.KEY=VALUE", help="Set a parameter of an attack or a measure."
        ),
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
        str | None, typer.Option(help="Where they run: inline, or ray for a pool of actors.")
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
    """Attack and measure the captures of a run, and score. Finished cells are kept.

    Of a study every finished run is audited.

    Example: fedleak audit runs/quickstart-20260102T030405 --attack gs --rounds 1

    Example: fedleak audit RUN --executor ray --actors 2 --follow

    Example: fedleak audit captured --model task:Net --input-shape 3,32,32 --attack gs
    """
    with _progress() as progress:
        from fedleak.captures import StudyLayout

        study = StudyLayout(directory).exists
        if study and (model or follow):
            raise typer.BadParameter("--model and --follow are for runs, this is a study")
        from fedleak.auditor.requests import (
            parse_clients,
            parse_rounds,
            parse_settings,
            parse_subject,
            parse_tasks,
        )

        asked = {
            "rounds": parse_rounds(rounds),
            "clients": parse_clients(clients),
            "subject": parse_subject(model, input_shape, mean, std, truth, fact or []),
        }

        def request(run: Path) -> dict[str, Any]:
            return {
                **asked,
                **parse_tasks(run, attack or [], measure or [], set_ or []),
                "settings": parse_settings(run, executor, actors, gpus_per_actor, address),
            }

        if study:
            from fedleak.studies import audit_study

            task = progress.add_task("Loading", total=None, note="")
            audit_study(directory, request, _on_study(progress, task))
        else:
            audited = _audit(progress, directory, following=follow, **request(directory))
    if study:
        _finish_study(directory, as_json)
    else:
        _finish(directory, audited, as_json)


@app.command()
def advise(directory: RunPath, as_json: AsJson = False) -> None:
    """Name the layers of an audited run that leak most, and try what protects them.

    Runs the scenario again with noise on these layers, pruning them or withholding them,
    and shows leakage and accuracy before and after. It needs a scenario with an attack, and
    takes about as long as a dozen such runs.

    Example: fedleak advise runs/quickstart-20260102T030405
    """
    with _progress() as progress:
        task = progress.add_task("Measuring layers", total=None, note="")
        from fedleak.studies import advise as advise_on

        def on_step(measure: str, step: int, total: int) -> None:
            progress.update(task, note=f"{measure} {step / total:.0%}")

        advice = advise_on(directory, on_step=on_step, on_run=_on_study(progress, task))
    if as_json:
        _print_json(dataclasses.asdict(advice) | {"study": str(advice.study)})
        return
    from fedleak.reporting.advice import advice_report

    tried = [(each.name, each.leak, each.accuracy) for each in advice.protections]
    out.print(
        advice_report(
            advice.metric,
            advice.ranking,
            advice.layers,
            tried,
            tried[advice.protections.index(advice.best)],
            hides=advice.hides,
            needed=advice.needed,
            at_chance=advice.at_chance,
            of_texts=advice.of_texts,
            notes=advice.notes,
        )
    )
    out.print(f"\nRuns: {advice.study}", markup=False, soft_wrap=True)


@app.command()
def report(
    directory: RunPath,
    as_json: AsJson = False,
    markdown: Annotated[
        bool,
        typer.Option(
            "--markdown", help="Of a study: print published and measured values as Markdown."
        ),
    ] = False,
) -> None:
    """Write the page of an audited run or a study again and print its summary.

    The table of a study is made anew from the runs that are finished.

    Example: fedleak report runs/quickstart-20260102T030405

    Example: fedleak report runs/study-20260102T030405 --markdown >> results.md
    """
    from fedleak.captures import StudyLayout

    if not StudyLayout(directory).exists:
        if markdown:
            raise typer.BadParameter("--markdown is for studies, this is a run")
        _print_report(directory, as_json)
        return
    with _waiting("Reading the runs"):
        from fedleak.studies import aggregate

        aggregate(directory)
    if markdown:
        from fedleak.reporting import study_markdown

        print(study_markdown(directory), end="")
        return
    _print_study(directory, as_json)


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
    from fedleak.scenario import ScenarioFile

    _print_json(ScenarioFile.model_json_schema())


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
            except (FedLeakError, typer.BadParameter):
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

    notes = {"rate": "", "best": "", "step": ""}

    def tell(**update: Any) -> None:
        progress.update(task, note=", ".join(filter(None, notes.values())), **update)

    def on_cell(state: Any) -> None:
        speed = progress.tasks[task].speed
        notes["rate"] = "" if speed is None else f"{60 * speed:.0f}/min"
        notes["best"] = "" if state.best_psnr is None else f"best {state.best_psnr:.0f} dB"
        notes["step"] = ""
        tell(completed=state.done, total=state.total)

    def on_step(attack: str, iteration: int, total: int) -> None:
        notes["step"] = f"{attack} {iteration / total:.0%}"
        tell()

    def on_audited(_: Audited) -> None:
        write_page(directory)

    if following:
        audited = follow(
            directory,
            on_audited=on_audited,
            on_plan=on_plan,
            on_cell=on_cell,
            on_step=on_step,
            **request,
        )
    else:
        audited = audit_run(directory, on_plan=on_plan, on_cell=on_cell, on_step=on_step, **request)
    if progress.tasks[task].total is None:
        progress.update(task, completed=1, total=1, note="every attack was finished before")
    return audited


def _command(scenario: Path, overrides: Sequence[str]) -> str:
    """The command line that runs a scenario, to be copied."""
    settings = [part for override in overrides for part in ("--set", override)]
    return shlex.join(["fedleak", "run", str(scenario), *settings])


def _on_study(progress: Progress, task: TaskID) -> Callable[[StudyProgress], None]:
    def on_run(state: StudyProgress) -> None:
        if progress.tasks[task].total is None:
            progress.console.print(f"Study: {state.directory}", markup=False, soft_wrap=True)
        failed = f"{state.failed} failed, " if state.failed else ""
        progress.update(
            task,
            description="Runs",
            completed=state.done,
            total=state.total,
            note=failed + state.cell,
        )

    return on_run


def _keep_interrupts() -> Callable[[], None]:
    """Ctrl-C may come where Python drops what is raised, in a finaliser for example.

    Returns:
        What raises it again, if it came.
    """
    came = False

    def note(*_: object) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    def again() -> None:
        if came:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    return again


def _finish_study(directory: Path, as_json: bool) -> None:
    results = _print_study(directory, as_json)
    missed = sum(not expectation.met for expectation in results.expectations)
    if missed:
        raise ExpectationMissed(f"{missed} of {len(results.expectations)} expectations were missed")
    if failed := results.count("failed"):
        plural = "" if failed == 1 else "s"
        raise StudyIncomplete(f"{failed} run{plural} failed; `fedleak run {directory}` tries again")


def _print_study(directory: Path, as_json: bool) -> StudyResults:
    from fedleak.reporting import study_report, write_study_page
    from fedleak.reporting.study import read_study

    page = write_study_page(directory)
    results = read_study(directory)
    if as_json:
        _print_json(
            {
                "study": str(directory),
                "page": str(page),
                "repeats": results.repeats,
                "aggregation": results.aggregation,
                "cells": [cell.model_dump() for cell in results.cells],
                "values": [dataclasses.asdict(value) for value in results.values],
                "expectations": [
                    {**expectation.model_dump(), "difference": expectation.difference}
                    for expectation in results.expectations
                ],
                "notes": list(results.notes),
            }
        )
    else:
        out.print(study_report(directory))
        out.print(f"\nTable: {results.layout.table}", markup=False, soft_wrap=True)
        out.print(f"Page: {page}", markup=False, soft_wrap=True)
    return results


def _grid(names: Iterable[str]) -> Table:
    """A table without lines, indented, whose first column has room for any of the names."""
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, min_width=max((len(name) for name in names), default=0))
    return grid


def _print_parameters(entries: Sequence[Entry]) -> None:
    names = [parameter.name for entry in entries for parameter in entry.parameters]
    # No word of a default is broken, unless it would leave no room for what it means.
    words = [word for e in entries for p in e.parameters for word in (p.default or "").split()]
    width = min(max([_DEFAULT_WIDTH, *(len(word) + 2 for word in words)]), _WIDEST_DEFAULT)
    for entry in entries:
        out.print(f"[bold cyan]{entry.kind}[/]")
        out.print(Padding(escape(entry.summary), (0, 0, 0, 2)))
        grid = _grid(names)
        grid.add_column(overflow="fold", min_width=width, max_width=width)
        for parameter in entry.parameters:
            default = "required" if parameter.default is None else f"= {parameter.default}"
            grid.add_row(parameter.name, escape(default), escape(parameter.description))
        if entry.parameters:
            out.print(Padding(grid, (0, 0, 0, 2)))
        if entry.metrics:
            out.print(Padding(f"Metrics: {_shortened(entry.metrics)}", (0, 0, 0, 2)))
        out.print()


def _shortened(metrics: Sequence[str]) -> str:
    """Names that differ in a number alone only once, with ``NN`` for it."""
    numbers = dict.fromkeys(re.findall(r"\d\d", " ".join(metrics)))
    names = dict.fromkeys(re.sub(r"\d\d", "NN", metric) for metric in metrics)
    return ", ".join(names) + (f"; NN is one of {', '.join(numbers)}" if numbers else "")


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
    from fedleak.reporting.layers import measured_rows
    from fedleak.reporting.results import read_results

    page = write_page(directory)
    if as_json:
        results = read_results(directory)
        _print_json(
            {
                "run": str(directory),
                "page": str(page),
                "cells": [dataclasses.asdict(row) for row in summary(directory)],
                "measures": [dataclasses.asdict(row) for row in measured_rows(results)],
                "expectations": [
                    {**expectation.model_dump(), "difference": expectation.difference}
                    for expectation in results.expectations
                ],
                "notes": list(results.notes),
            }
        )
        return
    out.print(terminal_report(directory))
    out.print(f"\nPage: {page}", markup=False, soft_wrap=True)
