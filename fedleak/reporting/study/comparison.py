"""Published values beside measured ones: a row per cell, a column per value compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedleak.reporting import text
from fedleak.reporting.results import Expectation
from fedleak.reporting.study.results import StudyCell, StudyResults
from fedleak.reporting.study.tables import (
    claimed_of,
    place_beside,
    plus_minus,
    settings,
    what_is_claimed,
)


@dataclass(frozen=True)
class Compared:
    """An expectation in words.

    Attributes:
        expectation: It.
        cell: The cell that it is about; of several, what they have in common.
        settings: What sets that apart, by shortened key.
        what: What was measured, and minus which other cell.
        published: The value, with its sign where it is a limit.
        tolerance: Empty where there is none.
        measured: The mean over repeats and half of its interval.
        difference: Measured minus published.
    """

    expectation: Expectation
    cell: StudyCell
    settings: dict[str, str]
    what: str
    published: str
    tolerance: str
    measured: str
    difference: str

    @property
    def pair(self) -> str:
        """``published / measured``, with a mark where it was missed."""
        mark = "" if self.expectation.met else " NO"
        mean, *_ = self.measured.split()
        return f"{self.published} / {mean}{mark}"


def compared(results: StudyResults) -> list[Compared]:
    """All expectations in the study's order."""
    cells = {cell.name: cell for cell in results.cells}
    attacks = {value.attack for value in results.values} - {None}
    told = []
    for e in results.expectations:
        cell = claimed_of(results, e)
        what = what_is_claimed(results, e)
        if e.attack and attacks != {e.attack}:
            what = f"{e.attack} {what}"
        if e.layer:
            what += f" of {e.layer}" + (f" minus {e.minus_layer}" if e.minus_layer else "")
        if e.minus:
            what += f" minus {place_beside(results, cells[e.minus], cell)}"
        measured = plus_minus(e.measured, e.low, e.high)
        if e.measured is not None and e.repeats != results.repeats:
            measured += f" (n = {e.repeats})"
        told.append(
            Compared(
                expectation=e,
                cell=cell,
                settings=settings(results, cell),
                what=what,
                published=text.requirement(e.comparison, e.value, 0).removeprefix("= "),
                tolerance=f"± {text.plain(e.tolerance)}" if e.tolerance else "",
                measured=measured,
                difference=text.plain(e.difference),
            )
        )
    return told


@dataclass(frozen=True)
class Side:
    """All expectations side by side.

    Attributes:
        heads: What is compared, with the tolerance.
        rows: By cell's name, under each head what was expected there, if anything.
    """

    heads: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Compared]]


def side_by_side(told: list[Compared]) -> Side:
    """A row for each cell, a column for what is compared there.

    Two values for one and the same place, from two sources, stand in two columns.
    """
    heads: dict[str, None] = {}
    rows: dict[str, dict[str, Compared]] = {}
    for each in told:
        row = rows.setdefault(each.cell.name, {})
        head = each.what + (f" ({each.tolerance})" if each.tolerance else "")
        while head in row:
            head += f" [{each.expectation.source or 'again'}]"
        heads[head] = None
        row[head] = each
    return Side(tuple(heads), rows)
