"""The report for a terminal of 80 columns: the answer first, then the worst leaks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedleak.reporting import text
from fedleak.reporting.layers import headlines, measured_rows, refuted
from fedleak.reporting.results import Expectation, Results, read_results, verdicts
from fedleak.reporting.tables import (
    Trouble,
    answer,
    defenses,
    summary_rows,
    troubles,
    worst_first,
)

MOST_ROWS = 20


def terminal_report(run: Path) -> RenderableType:
    """Render an audited run for `rich.console.Console.print`.

    One sentence says how much leaked; then come the worst leaks, what did not finish and
    why, and published against measured values where the scenario states any.

    Args:
        run: The run directory.

    Raises:
        ResourceError: ``run`` is no run directory, or has not been audited.
        CaptureError: A file of it is damaged; the message names the file.
    """
    results = read_results(run)
    reply = answer(results)
    style = "bold red" if reply.reconstructed else "bold"
    parts: list[RenderableType] = [Text(reply.sentence, style)]
    if (acted := defenses(results)) is not None:
        parts.append(outside(acted))
    parts += [Text(said, "bold red") for said in refuted(results)]
    parts += [Text(note, "yellow") for note in results.notes]
    parts += _leaks(results)
    parts += _measured(results)
    if reply.samples and reply.unscored:
        note = f"No truth is available for {text.count(reply.unscored, 'attack')}: not scored."
        parts += [Text(), Text(note)]
    failed = troubles(results)
    for trouble in failed:
        parts += [Text(), _trouble(trouble)]
    if any(trouble.status == "failed" for trouble in failed):
        where = f"grep -l '\"failed\"' {run}/audit/cells/*.json"
        again = f"What failed is tried again once its files are removed, which this names: {where}"
        parts.append(Text(again, "dim"))
    if results.expectations:
        parts += [Text(), *(outside(said) for said in verdicts(results.expectations))]
        parts.append(compared(results.expectations))
    return Group(*parts)


def _leaks(results: Results) -> list[RenderableType]:
    scored = worst_first(row for row in summary_rows(results) if row.samples)
    if not scored:
        return []
    several = any(row.samples > 1 for row in scored)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("client", overflow="ellipsis", no_wrap=True, max_width=20)
    table.add_column("round", justify="right")
    table.add_column("attack", overflow="fold", max_width=21)
    if several:
        table.add_column("found", justify="right")
        table.add_column("best" if results.of_texts else "best PSNR", justify="right")
    table.add_column("right tokens" if results.of_texts else "PSNR dB", justify="right")
    if not results.of_texts:
        table.add_column("SSIM", justify="right")
    table.add_column("labels" if several else "label recovered", justify="right")
    for row in scored[:MOST_ROWS]:
        if results.of_texts:
            best, middle = (text.percent(x) for x in (row.tokens_best, row.tokens_median))
        else:
            best, middle = (text.decibel(x) for x in (row.psnr_best, row.psnr_median))
        table.add_row(
            outside(row.client),
            str(row.round),
            outside(f"{row.attack} {row.settings}".strip()),
            *([f"{row.found}/{row.samples}", best] if several else []),
            middle,
            *([] if results.of_texts else [text.ratio(row.ssim)]),
            text.share(row.label_recovered, row.samples),
            style="red" if row.reconstructed else "",
        )
    parts: list[RenderableType] = [Text(), table]
    notes = []
    if len(scored) > MOST_ROWS:
        notes.append(
            f"worst {MOST_ROWS} of {len(scored):,}; the other {len(scored) - MOST_ROWS:,} are "
            "on the page"
        )
    if several:
        what = "right tokens are" if results.of_texts else "PSNR and SSIM are"
        notes.append(f"{what} medians over those of a client's samples that were found")
    if notes:
        parts.append(Text("; ".join(notes), "dim"))
    return parts


def _measured(results: Results) -> list[RenderableType]:
    rows = headlines(measured_rows(results))
    if not rows:
        return []
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("measured", overflow="fold")
    table.add_column("most in", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    for headline in rows[:MOST_ROWS]:
        most = headline.most
        table.add_row(
            outside(f"{most.metric} {most.settings}".strip()),
            # Nothing above zero is in no layer more than in another.
            outside(f"{most.layer or 'the update'}, round {most.round}")
            if most.value > 0
            else "nowhere",
            text.plain(most.value),
            text.interval(most.low, most.high),
        )
    parts: list[RenderableType] = [Text(), table]
    if len(rows) > MOST_ROWS:
        parts.append(Text(f"{len(rows) - MOST_ROWS} more are on the page", "dim"))
    return parts


def _trouble(trouble: Trouble) -> Text:
    return Text.assemble(
        (f"{trouble.status}: ", "yellow"),
        outside(trouble.task),
        f" on {text.count(trouble.cells, 'update')}: ",
        outside(trouble.reason),
    )


def compared(expectations: Sequence[Expectation]) -> Table:
    """Published against measured values."""
    sources = any(expectation.source for expectation in expectations)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("expected", overflow="fold")
    for name in ("published", "measured", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("met")
    if sources:
        table.add_column("source", overflow="fold")
    for expectation in expectations:
        table.add_row(
            outside(expectation.subject),
            text.requirement(expectation.comparison, expectation.value, expectation.tolerance),
            text.plain(expectation.measured),
            text.plain(expectation.difference),
            Text("yes", "green") if expectation.met else Text("NO", "bold red"),
            *([outside(expectation.source)] if sources else []),
        )
    return table


def outside(words: str) -> Text:
    """Text from a file: no markup, and no control characters that steer the terminal."""
    return Text("".join(letter if letter.isprintable() else "�" for letter in words))
