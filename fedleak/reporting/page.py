"""The HTML page of a run: one file that shows everything, offline and without scripts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedleak.captures import write_atomic
from fedleak.reporting import text
from fedleak.reporting.layers import layer_charts, measured_rows, refuted
from fedleak.reporting.results import RECONSTRUCTED_DB, Results, read_results, verdicts
from fedleak.reporting.tables import (
    answer,
    exposed,
    round_rows,
    summary_rows,
    troubles,
    worst_first,
)
from fedleak.reporting.wall import MOST_CARDS, build_wall


def write_page(run: Path) -> Path:
    """Write ``report/index.html`` into an audited run and return its path.

    The page holds its style and its pictures, so it can be mailed or archived alone; an
    older page is replaced as a whole.

    Args:
        run: The run directory.

    Raises:
        ResourceError: ``run`` is no run directory, has not been audited, or cannot be
            written.
        CaptureError: A file of it is damaged; the message names the file.
    """
    return put_page(Path(run), _render(read_results(run)))


def put_page(directory: Path, page: str) -> Path:
    """Write a page where the reports of a directory lie."""
    path = directory / "report" / "index.html"
    write_atomic(path, page.encode())
    return path


def fill(template: str, **values: Any) -> str:
    """Fill one of this package's templates; everything but the style is escaped."""
    import jinja2
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        # By file name alone jinja would not escape a template that ends in .j2.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((here / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, text=text, **values)


def _render(results: Results) -> str:
    rows = summary_rows(results)
    scored = [row for row in worst_first(rows) if row.leak is not None]
    metrics = dict.fromkeys(name for record in results.rounds.values() for name in record.metrics)
    return fill(
        "page.html.j2",
        name=results.layout.root.resolve().name,
        answer=answer(results),
        threshold=RECONSTRUCTED_DB,
        strongest=scored[0] if scored else None,
        notes=results.notes,
        refuted=refuted(results),
        troubles=troubles(results),
        wall=build_wall(results),
        most_cards=MOST_CARDS,
        rows=rows,
        rounds=round_rows(results),
        exposed=exposed(results),
        measured=measured_rows(results),
        charts=layer_charts(results),
        metrics=list(metrics),
        expectations=results.expectations,
        verdicts=verdicts(results.expectations),
        scenario=results.scenario,
        environment=results.environment,
        disclosed=_disclosed(results),
        parameters=_parameters(results),
    )


def _parameters(results: Results) -> list[tuple[str, str]]:
    """Attack or measure and parameters, each combination that ran once."""
    return sorted(
        {
            (cell.task, ", ".join(f"{name} = {value}" for name, value in cell.parameters.items()))
            for cell in (*results.cells, *results.measures)
        }
    )


def _disclosed(results: Results) -> list[tuple[str, str, str]]:
    """What each client said of its training: client, rounds, facts; equal facts together."""
    rounds: dict[tuple[str, str], list[int]] = {}
    for number, record in results.rounds.items():
        for client, captured in record.clients.items():
            facts = captured.facts or {}
            words = ", ".join(
                f"{name.replace('_', ' ')} {_fact(value)}" for name, value in facts.items()
            )
            rounds.setdefault((client, words or "nothing"), []).append(number)
    return [
        (client, _ranges(numbers), facts) for (client, facts), numbers in sorted(rounds.items())
    ]


def _fact(value: float | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return text.plain(value)


def _ranges(numbers: Iterable[int]) -> str:
    """``1–3, 5`` for ascending 1, 2, 3, 5."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}–{high}" for low, high in spans)
