"""Reads what a report needs from a run directory; checks all of it on the way in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from fedleak.captures import RunLayout
from fedleak.errors import CaptureError, ResourceError
from fedleak.reporting import text

T = TypeVar("T")

CellStatus = Literal["done", "failed", "unsupported"]


class Stored(BaseModel):
    """A record read from JSON. Keys a newer writer may add are passed over."""

    model_config = ConfigDict(frozen=True)


class Cell(Stored):
    """One attack on one capture, or one measure of it, as the auditor recorded it."""

    cell: str
    round: int
    client: str
    attack: str | None
    measure: str | None = None
    parameters: dict[str, Any] = {}
    status: CellStatus
    reason: str = ""
    seconds: float

    @property
    def task(self) -> str:
        """The attack or the measure."""
        return self.attack or self.measure or ""


class Expectation(Stored):
    """A published value or a limit beside the value measured; None if none was.

    In a study it is about a cell, about the difference from that to another one, or about the
    samples of several cells together, whose ``pairs`` of values are there; ``measured`` is the
    mean over ``repeats`` runs. ``low`` to ``high`` is its 95 % interval, where there is one.
    """

    metric: str
    attack: str | None = None
    layer: str | None = None
    minus_layer: str | None = None
    round: int | None = None
    cells: tuple[str, ...] = ()
    minus: str | None = None
    against: str | None = None
    pairs: tuple[tuple[float, float], ...] = ()
    aggregate: str = ""
    comparison: str
    value: float
    tolerance: float = 0.0
    measured: float | None
    low: float | None = None
    high: float | None = None
    repeats: int = 1
    met: bool
    source: str = ""
    claim: str = ""

    @property
    def subject(self) -> str:
        """What was measured, in words: ``gs median psnr``, ``accuracy in round 5``."""
        if self.against is not None:
            return f"Spearman's rho of {self.metric} and {self.against}"
        minus = None if self.minus_layer is None else f"minus {self.minus_layer}"
        when = None if self.round is None else f"in round {self.round}"
        parts = (self.attack, self.aggregate, self.metric, self.layer, minus, when)
        return " ".join(filter(None, parts))

    def verdict(self, where: str = "") -> str | None:
        """Whether what was claimed was seen, and the numbers that decide it; None for none.

        An interval with values on both sides of the limit decides nothing.

        Args:
            where: Of a study, the settings it is about, in words.
        """
        if not self.claim:
            return None
        if self.measured is None:
            return f"Not measured: {self.claim}."
        seen = "Seen" if self.met else "Not seen"
        said = f"{self.subject} is {text.plain(self.measured)}"
        if self.low is None or self.high is None:
            seen += ", without an interval"
        else:
            said += f", 95 % interval {text.interval(self.low, self.high)}"
            if self._spans(self.low, self.high):
                seen = "Undecided"
        wanted = text.requirement(self.comparison, self.value, self.tolerance)
        if len(self.cells) > 1:
            where = f"{len(self.cells)} cells" + (f" of {where}" if where else "")
            said += f" over {where}"
        elif where:
            said += f" at {where}"
        return f"{seen}: {self.claim} ({said}; {wanted} was expected)."

    @property
    def undecided(self) -> bool:
        """Whether something is claimed and its interval has values on both sides."""
        if not self.claim or self.low is None or self.high is None:
            return False
        return self._spans(self.low, self.high)

    def _spans(self, low: float, high: float) -> bool:
        """Whether some values of an interval meet the expectation and others do not."""
        least = -math.inf if self.comparison == "<=" else self.value - self.tolerance
        most = math.inf if self.comparison == ">=" else self.value + self.tolerance
        return low <= most and high >= least and not (least <= low and high <= most)

    @property
    def difference(self) -> float | None:
        """Measured minus published."""
        return None if self.measured is None else self.measured - self.value


def verdicts(expectations: Sequence[Expectation]) -> list[str]:
    """What was claimed and whether it was seen, a sentence each."""
    return [said for each in expectations if (said := each.verdict()) is not None]


class CapturedClient(Stored):
    """The part of a manifest entry that a report shows."""

    facts: dict[str, float | bool] | None = None


class Round(Stored):
    """One committed round."""

    clients: dict[str, CapturedClient]
    absent: list[str] = []
    rejected: dict[str, str] = {}
    refused: dict[str, str] = {}
    metrics: dict[str, float] = {}


class _Manifest(Stored):
    rounds: dict[int, Round]


RECONSTRUCTED_DB = 20.0
"""From this PSNR on (dB) an image counts as reconstructed: a root-mean-square error of at
most a tenth of the pixel range. The one threshold of all reports."""

RECONSTRUCTED_TOKENS = 0.9
"""From this share of right tokens on a text counts as reconstructed."""


@dataclass
class SampleScores:
    """Scores of one true sample under one attack.

    Attributes:
        match: Index of the reconstruction assigned to the sample, -1 where there is none.
        values: Score by metric name. A score that is undefined (NaN) is left out.
    """

    match: int = -1
    values: dict[str, float] = field(default_factory=dict)

    @property
    def leak(self) -> float:
        """How much of the sample leaked: PSNR or, of a text, share of right tokens.

        -inf where neither is known.
        """
        return self.values.get("psnr", self.values.get("token-accuracy", -math.inf))

    @property
    def reconstructed(self) -> bool:
        """Whether the sample counts as reconstructed."""
        return (
            self.values.get("psnr", -math.inf) >= RECONSTRUCTED_DB
            or self.values.get("token-accuracy", 0.0) >= RECONSTRUCTED_TOKENS
        )


@dataclass(frozen=True)
class Measured:
    """One measured value.

    Attributes:
        cell: The cell's name.
        metric: Its name.
        layer: The layer or layers, None for the whole update.
        sample: Index of the true sample, -1 for the cell as a whole.
        value: A finite or infinite number.
        low: Lower end of its 95 % interval; NaN where there is none.
        high: Upper end.
    """

    cell: str
    metric: str
    layer: str | None
    sample: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Pictures:
    """Samples from one file: ``inputs`` (m, \\*input) in [0, 1], or tokens (m, length),
    ``labels`` (m,), ``confidence`` (m,); None where the file has none.
    """

    inputs: npt.NDArray[np.float32] | npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64] | None
    confidence: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class Results:
    """An audited run.

    Attributes:
        layout: Where its files lie.
        rounds: Committed rounds by number, ascending.
        cells: All cells of attacks by round, client and attack.
        measures: All cells of measures likewise.
        measured: What the measures gave, in the order in which they gave it.
        scores: By cell name, then by index of the true sample; -1 holds the scores of
            the whole cell. A cell without truth has no entry.
        expectations: Empty where the scenario has none.
        environment: Versions and machine, as recorded.
        scenario: The resolved scenario's text; None where FedLeak did not run the rounds.
        notes: Sentences that a reader of the scores must know.
        vocabulary: Where samples are texts, the word of each token.
    """

    layout: RunLayout
    rounds: Mapping[int, Round]
    cells: tuple[Cell, ...]
    measures: tuple[Cell, ...]
    measured: tuple[Measured, ...]
    scores: Mapping[str, Mapping[int, SampleScores]]
    expectations: tuple[Expectation, ...]
    environment: Mapping[str, Any]
    scenario: str | None
    notes: tuple[str, ...]
    vocabulary: tuple[str, ...] = ()

    def samples(self, cell: Cell) -> dict[int, SampleScores]:
        """Scores of the cell's true samples, by index; empty without truth."""
        scores = self.scores.get(cell.cell, {})
        return {index: scores[index] for index in sorted(scores) if index >= 0}

    def settings(self, cell: Cell) -> str:
        """The parameters that set the cell apart from others of its kind, or ``""``.

        The shortest come first: where there is little room, they still tell.
        """
        told = (
            f"{name}={value}"
            for name, value in cell.parameters.items()
            if (cell.task, name) in self._varied
        )
        return ", ".join(sorted(told, key=len))

    @cached_property
    def _varied(self) -> set[tuple[str, str]]:
        """(task, parameter) pairs that do not have one value throughout the run."""
        values: dict[tuple[str, str], set[str]] = {}
        for cell in (*self.cells, *self.measures):
            for name, value in cell.parameters.items():
                values.setdefault((cell.task, name), set()).add(repr(value))
        return {pair for pair, found in values.items() if len(found) > 1}

    @property
    def of_texts(self) -> bool:
        """Whether samples are texts."""
        return bool(self.vocabulary)

    def reconstructions(self, cell: Cell) -> Pictures:
        """What the attack of a finished cell made.

        Raises:
            CaptureError: The file is missing or damaged.
        """
        path = self.layout.cells / f"{cell.cell}.safetensors"
        if (pictures := _read_pictures(path)) is None:
            raise CaptureError(
                f"{path} is missing although its cell is done; delete {cell.cell}.json beside it "
                f"and run `fedleak audit {self.layout.root}` again"
            )
        return pictures

    def originals(self, round: int, client: str) -> Pictures | None:
        """The client's true samples; None where there is no truth.

        Raises:
            CaptureError: The file is damaged.
        """
        return _read_pictures(self.layout.original(round, client))


def read_results(run: Path) -> Results:
    """Read an audited run.

    Args:
        run: The run directory.

    Raises:
        ResourceError: ``run`` is no run directory, or has not been audited.
        CaptureError: A file of it is damaged; the message names the file.
    """
    layout = RunLayout(Path(run))
    if not layout.manifest.is_file():
        raise ResourceError(
            f"{run} is not a run directory: it has no {layout.manifest.name}. "
            "`fedleak run SCENARIO` makes one and prints its path"
        )
    paths = sorted(layout.cells.glob("*.json"))
    if not paths:
        raise ResourceError(f"{run} has no audit results yet; run `fedleak audit {run}` first")
    if not layout.results.is_file():
        raise ResourceError(
            f"the audit of {run} did not finish: {layout.results.name} is missing; "
            f"`fedleak audit {run}` finishes it"
        )
    cells = sorted(
        (_read_cell(path) for path in paths), key=lambda cell: (cell.round, cell.client, cell.cell)
    )
    scores, measured = _read_rows(layout.results)
    manifest = read_json(layout.manifest, TypeAdapter(_Manifest))
    return Results(
        layout=layout,
        rounds=dict(sorted(manifest.rounds.items())),
        cells=tuple(cell for cell in cells if cell.attack is not None),
        measures=tuple(cell for cell in cells if cell.measure is not None),
        measured=measured,
        scores=scores,
        expectations=read_json(layout.expectations, TypeAdapter(tuple[Expectation, ...]), ()),
        environment=read_json(layout.environment, TypeAdapter(dict[str, Any]), {}),
        scenario=_read_text(layout.scenario),
        notes=read_json(layout.notes, TypeAdapter(tuple[str, ...]), ()),
        vocabulary=read_json(layout.vocabulary, TypeAdapter(tuple[str, ...]), ()),
    )


def _read_cell(path: Path) -> Cell:
    cell = read_json(path, TypeAdapter(Cell))
    # The names lead to other files, so they must not lead out of the run directory.
    if cell.cell != path.stem or "/" in cell.client:
        raise CaptureError(f"{path} says it is cell {cell.cell!r} of client {cell.client!r}")
    return cell


def read_json(path: Path, adapter: TypeAdapter[T], default: T | None = None) -> T:
    """Read and check a JSON file.

    Raises:
        CaptureError: It is damaged or, where there is no default, missing.
    """
    try:
        return adapter.validate_json(path.read_bytes())
    except FileNotFoundError:
        if default is None:
            raise CaptureError(f"{path} is missing") from None
        return default
    except OSError as error:
        raise CaptureError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CaptureError(
            f"{path} is damaged: {place + ': ' if place else ''}{first['msg']}"
        ) from (error)


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CaptureError(f"{path} cannot be read: {error}") from error


def _read_rows(path: Path) -> tuple[dict[str, dict[int, SampleScores]], tuple[Measured, ...]]:
    """Scores by cell and sample, and measured values."""
    # Imported here: `fedleak --help` does not need pyarrow.
    from fedleak.captures.ledger import read_ledger

    scores: dict[str, dict[int, SampleScores]] = {}
    measured = []
    for row in chain.from_iterable(read_ledger(path).values()):
        defined = row["value"] is not None and not math.isnan(row["value"])
        if row["measure"] is not None:
            if defined:
                values = {name: row[name] for name in Measured.__dataclass_fields__}
                measured.append(Measured(**values))
            continue
        entry = scores.setdefault(row["cell"], {}).setdefault(row["sample"], SampleScores())
        entry.match = row["match"]
        if defined:
            entry.values[row["metric"]] = row["value"]
    return scores, tuple(measured)


def _read_pictures(path: Path) -> Pictures | None:
    try:
        arrays = safetensors_numpy.load(path.read_bytes())
        inputs = arrays["inputs"]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CaptureError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CaptureError(f"{path} is damaged: {error}") from error
    except KeyError as error:
        raise CaptureError(f"{path} is damaged: it has no {error}") from error
    labels, confidence = arrays.get("labels"), arrays.get("confidence")
    if any(part is not None and len(part) != len(inputs) for part in (labels, confidence)):
        raise CaptureError(f"{path} is damaged: its arrays have different lengths")
    return Pictures(inputs, labels, confidence)
