"""The tables of a report: what each attack got, round by round, and the answer in a sentence."""

from __future__ import annotations

import math
import statistics
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedleak.reporting import text
from fedleak.reporting.results import (
    RECONSTRUCTED_DB,
    RECONSTRUCTED_TOKENS,
    Cell,
    CellStatus,
    Results,
    SampleScores,
    read_results,
)


@dataclass(frozen=True)
class SummaryRow:
    """One audit cell: one attack on one client's update in one round.

    Attributes:
        cell: The cell's name.
        round: Round number, from 1.
        client: The client's name.
        attack: The attack's name.
        settings: The parameters in which it differs from other runs of the same attack.
        status: ``done``, ``failed`` or ``unsupported``.
        samples: True samples the reconstructions were scored against; 0 without truth.
        found: How many of them a reconstruction was assigned to.
        reconstructed: How many of them count as reconstructed.
        psnr_median: dB, over the samples that a reconstruction was assigned to.
        psnr_best: dB, the sample that leaked most. ``inf`` is an exact copy.
        ssim: Median structural similarity, -1 to 1.
        tokens_median: Of texts, the median share of right tokens, 0 to 1.
        tokens_best: The same of the text that leaked most.
        label_recovered: Share of labels recovered, 0 to 1.
        seconds: What the attack took.
        reason: Why the cell failed or is unsupported, in one line; the cell's own file
            has it in full.

    A score is None where there is nothing to score: no truth, no picture, no labels.
    """

    cell: str
    round: int
    client: str
    attack: str
    settings: str
    status: CellStatus
    samples: int
    found: int
    reconstructed: int
    psnr_median: float | None
    psnr_best: float | None
    ssim: float | None
    tokens_median: float | None
    tokens_best: float | None
    label_recovered: float | None
    seconds: float
    reason: str

    @property
    def leak(self) -> float | None:
        """The sample that leaked most: its PSNR or, of a text, its share of right tokens."""
        return self.tokens_best if self.psnr_best is None else self.psnr_best


@dataclass(frozen=True)
class Answer:
    """The counts behind a report's first sentence. Samples are (round, client, sample)."""

    samples: int
    reconstructed: int
    clients: int
    clients_reconstructed: int
    cells: int
    failed: int
    unsupported: int
    unscored: int
    of_texts: bool

    @property
    def threshold(self) -> str:
        """From what on a sample counts as reconstructed."""
        if self.of_texts:
            return f"{RECONSTRUCTED_TOKENS:.0%} of its tokens"
        return f"PSNR ≥ {RECONSTRUCTED_DB:g} dB"

    @property
    def sentence(self) -> str:
        """How much leaked, in one sentence that states its own threshold."""
        if not self.cells:
            return "No attack was run: what leaks is measured, not reconstructed."
        if not self.samples and self.unscored:
            return (
                f"No truth is available: {self.unscored} of {self.cells} attacks made "
                "reconstructions, and none of them can be scored."
            )
        if not self.samples:
            return "Nothing could be scored: every attack failed or is unsupported here."
        bar = f"{self.threshold} by at least one attack"
        was = "was" if self.samples == 1 else "were"
        plural = "" if self.samples == 1 else "s"
        return (
            f"{self.reconstructed} of {self.samples} audited sample{plural} {was} "
            f"reconstructed ({bar})."
        )


@dataclass(frozen=True)
class ExposedRow:
    """The sample of a client that leaked most in a round: its gradient leakage budget.

    Attributes:
        cell: The cell that got most.
        settings: Its parameters, of which layers it saw among them, where they vary.
        sample: Index of the true sample.
        leak: PSNR in dB or, of a text, share of right tokens.
        excess: How far that is above the mean over the client's samples; None where it is
            not finite.
    """

    cell: Cell
    settings: str
    sample: int
    leak: float
    excess: float | None


@dataclass(frozen=True)
class RoundRow:
    """One round: what leaked in it and who took part.

    Attributes:
        worst: The cell that leaked most; None where nothing was scored.
        metrics: What the central party measured after the round, by name.
        rejected: Reason by client, where the update was unusable.
        refused: Reason by client, where a defense of its own kept it from taking part.
    """

    round: int
    captured: int
    samples: int
    reconstructed: int
    worst: SummaryRow | None
    metrics: Mapping[str, float]
    absent: tuple[str, ...]
    rejected: Mapping[str, str]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Trouble:
    """Cells of one attack or measure that did not finish for one and the same reason."""

    task: str
    status: CellStatus
    reason: str
    cells: int


def summary(run: Path) -> list[SummaryRow]:
    """Summarise an audited run, one row per cell, by round, client and cell name.

    Args:
        run: The run directory.

    Raises:
        ResourceError: ``run`` is no run directory, or has not been audited.
        CaptureError: A file of it is damaged; the message names the file.
    """
    return summary_rows(read_results(run))


def summary_rows(results: Results) -> list[SummaryRow]:
    """`summary` of results already read."""
    return [_summary_row(cell, results) for cell in results.cells]


def worst_first(rows: Iterable[SummaryRow]) -> list[SummaryRow]:
    """Rows by falling leak; rows without a score come last."""
    return sorted(rows, key=lambda row: math.inf if row.leak is None else -row.leak)


def answer(results: Results) -> Answer:
    """Count over all cells what was reconstructed; the best attack on a sample counts."""
    scored = _scored(results, results.cells)
    reconstructed = [key for key, scores in scored.items() if any(s.reconstructed for s in scores)]
    status = Counter(cell.status for cell in results.cells)
    return Answer(
        samples=len(scored),
        reconstructed=len(reconstructed),
        clients=len({client for _, client, _ in scored}),
        clients_reconstructed=len({client for _, client, _ in reconstructed}),
        cells=len(results.cells),
        failed=status["failed"],
        unsupported=status["unsupported"],
        unscored=sum(c.status == "done" and not results.samples(c) for c in results.cells),
        of_texts=results.of_texts,
    )


def round_rows(results: Results) -> list[RoundRow]:
    """One row per committed round, audited or not, ascending."""
    rows = summary_rows(results)
    table = []
    for number, record in results.rounds.items():
        samples = _scored(results, (cell for cell in results.cells if cell.round == number))
        leaky = [row for row in rows if row.round == number and row.leak is not None]
        table.append(
            RoundRow(
                round=number,
                captured=len(record.clients),
                samples=len(samples),
                reconstructed=sum(any(s.reconstructed for s in each) for each in samples.values()),
                worst=next(iter(worst_first(leaky)), None),
                metrics=record.metrics,
                absent=tuple(record.absent),
                rejected=record.rejected,
                refused=record.refused,
            )
        )
    return table


def exposed(results: Results) -> list[ExposedRow]:
    """The most exposed sample of each client in each round, the greatest leak first."""
    rows = [
        ExposedRow(
            cell=cell,
            settings=results.settings(cell),
            sample=index,
            leak=scores.values["leakage-budget"],
            excess=scores.values.get("leakage-excess"),
        )
        for cell in results.cells
        for index, scores in results.samples(cell).items()
        if "leakage-budget" in scores.values
    ]
    return sorted(rows, key=lambda row: -row.leak)


def troubles(results: Results) -> list[Trouble]:
    """What did not finish and why; equal reasons are counted together, most cells first."""
    counts = Counter(
        (cell.task, cell.status, text.one_line(cell.reason))
        for cell in (*results.cells, *results.measures)
        if cell.status != "done"
    )
    return [
        Trouble(task, status, reason, number)
        for (task, status, reason), number in counts.most_common()
    ]


def defenses(results: Results) -> str | None:
    """Which defenses clients had, and what these reported in the last round; None without any."""
    client = tomllib.loads(results.scenario or "").get("client", {})
    kinds = [entry["kind"] for entry in client.get("defenses", ())]
    if not kinds:
        return None
    metrics = results.rounds[max(results.rounds)].metrics if results.rounds else {}
    told = []
    for position, kind in enumerate(kinds):
        # As `clients.defenses` names them: one of several of a kind bears its position.
        name = kind if kinds.count(kind) == 1 else f"{kind}-{position}"
        prefix = f"clients/{name}/"
        said = [
            f"{metric.removeprefix(prefix)} {text.plain(value)}"
            for metric, value in metrics.items()
            if metric.startswith(prefix)
        ]
        told.append(f"{kind} ({', '.join(said)})" if said else kind)
    return f"Defenses: {', '.join(told)}; clients' mean in the last round."


def _summary_row(cell: Cell, results: Results) -> SummaryRow:
    samples = results.samples(cell)
    psnr = _values(samples, "psnr")
    ssim = _values(samples, "ssim")
    tokens = _values(samples, "token-accuracy")
    whole = {-1: results.scores.get(cell.cell, {}).get(-1, SampleScores())}
    labels = _values(samples, "label-accuracy") or _values(whole, "label-accuracy")
    return SummaryRow(
        cell=cell.cell,
        round=cell.round,
        client=cell.client,
        attack=cell.task,
        settings=results.settings(cell),
        status=cell.status,
        samples=len(samples),
        found=sum(score.match >= 0 for score in samples.values()),
        reconstructed=sum(score.reconstructed for score in samples.values()),
        psnr_median=statistics.median(psnr) if psnr else None,
        psnr_best=max(psnr, default=None),
        ssim=statistics.median(ssim) if ssim else None,
        tokens_median=statistics.median(tokens) if tokens else None,
        tokens_best=max(tokens, default=None),
        label_recovered=statistics.fmean(labels) if labels else None,
        seconds=cell.seconds,
        reason=text.one_line(cell.reason) if cell.status != "done" else "",
    )


def _values(samples: Mapping[int, SampleScores], metric: str) -> list[float]:
    return [score.values[metric] for score in samples.values() if metric in score.values]


def _scored(
    results: Results, cells: Iterable[Cell]
) -> dict[tuple[int, str, int], list[SampleScores]]:
    """What the attacks got of each sample, by (round, client, sample)."""
    scored: dict[tuple[int, str, int], list[SampleScores]] = {}
    for cell in cells:
        for index, score in results.samples(cell).items():
            scored.setdefault((cell.round, cell.client, index), []).append(score)
    return scored
