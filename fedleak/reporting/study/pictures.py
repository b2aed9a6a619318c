"""Pictures side by side: what attacks made of one sample, cell by cell of a study."""

from __future__ import annotations

from dataclasses import dataclass

from fedleak.reporting.results import read_results
from fedleak.reporting.study.results import StudyResults
from fedleak.reporting.study.tables import place
from fedleak.reporting.wall import Tile, card_of

MOST_CELLS = 60


@dataclass(frozen=True)
class Shown:
    """What attacks made of a cell's first audited sample.

    Attributes:
        place: The cell's settings in a few words.
        tiles: The original, unless it is that of the cell before, then the attacks.
    """

    place: str
    tiles: tuple[Tile, ...]


def pictures(results: StudyResults) -> list[Shown]:
    """The first sample of the first client and round, of the first repeat of each cell.

    Cells of which nothing was attacked are left out, and all where samples are no pictures; of
    many cells the first `MOST_CELLS` are shown.

    Raises:
        CaptureError: A file of a run is damaged; the message names it.
    """
    shown: list[Shown] = []
    before: Tile | None = None
    for cell in results.cells[:MOST_CELLS]:
        if not any(run.repeat == 0 and run.status == "done" for run in cell.runs):
            continue
        run = results.layout.run(cell.name, 0)
        if not (run / "audit").is_dir():
            continue
        audited = read_results(run)
        first = min(((c.round, c.client) for c in audited.cells), default=None)
        if audited.of_texts or first is None or audited.originals(*first) is None:
            continue
        attacks = [each for each in audited.cells if (each.round, each.client) == first]
        card = card_of(audited, *first, 0, attacks)
        if card is None:
            continue
        original, *made = card.tiles
        shown.append(Shown(place(results, cell), tuple([original] * (original != before) + made)))
        before = original
    return shown
