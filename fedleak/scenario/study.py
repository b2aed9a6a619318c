"""A study: one scenario run with many settings, each several times."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from clients.defenses import labels
from fedleak.errors import Problem, ScenarioError, nearest
from fedleak.scenario.assignment import put
from fedleak.scenario.checks import no_such_round, not_audited
from fedleak.scenario.expectations import (
    MODEL_METRICS,
    OVER_ROUNDS,
    Expectation,
    needs_audit,
    reported_by,
)
from fedleak.scenario.loading import is_study, read_document, scenario_from
from fedleak.scenario.matrix import (
    MOST_CELLS,
    Settings,
    cell_names,
    keys_of,
    label,
    same,
    settings_of,
    size,
)
from fedleak.scenario.prepare import Prepared, prepare
from fedleak.scenario.problems import problems_of
from fedleak.scenario.schema import Design, Scenario
from fedleak.seeding import derive

_OF_THE_STUDY = ("matrix", "repeats", "keep_captures", "join", "expect", "name")
_MOST_NAMED = 3


@dataclass(frozen=True)
class StudyCell:
    """One setting of the matrix.

    Attributes:
        name: Readable and unique in the study.
        settings: The matrix's values by key path.
        scenario: What is run; its seed is that of the first repeat.
    """

    name: str
    settings: Settings
    scenario: Scenario


@dataclass(frozen=True)
class StudyRun:
    """One repeat of a cell."""

    cell: StudyCell
    repeat: int

    @property
    def scenario(self) -> Scenario:
        """The cell's scenario with the repeat's seed.

        The first repeat keeps the scenario's seed, so it is the run that the scenario
        alone would be. Repeat k has the same seed in every cell that does not vary the
        seed itself: cells differ in their settings, not in their luck.
        """
        if self.repeat == 0:
            return self.cell.scenario
        seed = derive(self.cell.scenario.seed, f"repeat-{self.repeat}")
        return self.cell.scenario.model_copy(update={"seed": seed})


@dataclass(frozen=True)
class Claim:
    """One published value for one cell, for the difference of two, or for several together.

    Attributes:
        expectation: With a single ``value``.
        cells: Names of the cells: one, or those whose samples count together.
        minus: Name of the cell whose value is subtracted, if any.
    """

    expectation: Expectation
    cells: tuple[str, ...]
    minus: str | None


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        document: The study as it was read, with overrides applied.
        name: Names its directory.
        repeats: Runs of each cell.
        keep_captures: Whether captures outlive a run's audit.
        keys: Key paths that the matrix varies.
        cells: In the matrix's order.
        claims: What the cells must give.
        beside: By cell whose global model nothing tests, the cell whose accuracy and loss it is
            shown with.
    """

    document: Mapping[str, Any]
    name: str
    repeats: int
    keep_captures: bool
    keys: tuple[str, ...]
    cells: tuple[StudyCell, ...]
    claims: tuple[Claim, ...]
    beside: Mapping[str, str]

    def runs(self) -> Iterator[StudyRun]:
        """All runs, repeat by repeat, so that one stopped early has every cell once."""
        for repeat in range(self.repeats):
            for cell in self.cells:
                yield StudyRun(cell, repeat)


def load_study(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Study:
    """Read and check a study: a scenario with ``matrix``, ``repeats`` or both.

    Args:
        source: Path of a TOML file, or the same content as a mapping.
        overrides: As for `load_scenario`; ``matrix.client.lr=[0.1]`` replaces a list of the
            matrix.

    Raises:
        ScenarioError: With every problem of every cell at once; a problem that not all
            cells have names those that do.
    """
    return study_from(read_document(source, overrides))


def study_from(document: dict[str, Any]) -> Study:
    """Check a document that was read; see `load_study` for the errors."""
    if not is_study(document):
        raise ScenarioError(Problem("", "this is no study: it has neither matrix nor repeats"))
    design, problems = _design(document)
    if size(design.matrix) > MOST_CELLS:
        message = f"makes {size(design.matrix):,} cells; at most {MOST_CELLS:,} are run"
        raise ScenarioError([*problems, Problem("matrix", message)])
    settings = settings_of(design.matrix)
    problems += _impossible_keys(settings)
    names = cell_names(settings)
    problems += [
        Problem("matrix", f"has the cell {name} {count} times")
        for name, count in Counter(names).items()
        if count > 1
    ]
    base = {k: v for k, v in document.items() if k not in Design.model_fields}
    found = _Problems(len(settings))
    cells = []
    for name, each in zip(names, settings, strict=True):
        with found.of(name):
            cells.append(StudyCell(name, each, scenario_from(_document_of(base, each))))
    problems += found.listed()
    claims: list[Claim] = []
    beside: dict[str, str] = {}
    if not problems:
        problems, claims = _claims(design.expect, cells)
    if not problems and design.join is not None:
        problems, beside = _joined(design.join, cells)
    if problems:
        raise ScenarioError(problems)
    name = cells[0].scenario.name
    return Study(
        document,
        name,
        design.repeats,
        design.keep_captures,
        keys_of(settings),
        tuple(cells),
        tuple(claims),
        beside,
    )


def check_cells(study: Study, on_prepared: Callable[[Prepared], object] | None = None) -> None:
    """Prepare every cell once: its data are there and its model and attacks fit them.

    Args:
        study: The study.
        on_prepared: Called with each cell that is sound, for what else there is to check.

    Raises:
        ScenarioError: With the problems of all cells.
    """
    found = _Problems(len(study.cells))
    for cell in study.cells:
        with found.of(cell.name):
            prepared = prepare(cell.scenario)
            if on_prepared is not None:
                on_prepared(prepared)
    if problems := found.listed():
        raise ScenarioError(problems)


class _Problems:
    """Collects problems by the cells that have them."""

    def __init__(self, cells: int) -> None:
        self._cells = cells
        self._named: dict[Problem, list[str]] = {}
        self._cell = ""

    def of(self, cell: str) -> _Problems:
        self._cell = cell
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, ScenarioError):
            return False
        for problem in error.problems:
            self._named.setdefault(problem, []).append(self._cell)
        return True

    def listed(self) -> list[Problem]:
        """Each problem once; what all cells have is the scenario's own."""
        return [
            problem
            if len(names) == self._cells
            else Problem(problem.path, f"{problem.message} [{_several('cell', names)}]")
            for problem, names in self._named.items()
        ]


def _several(noun: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{noun}{'' if len(names) == 1 else 's'} {shown}{more}"


def _design(document: Mapping[str, Any]) -> tuple[Design, list[Problem]]:
    """What makes it a study. Beside a wrong expectation the cells are still worth checking."""
    raw = {key: document[key] for key in Design.model_fields if key in document}
    problems: list[Problem] = []
    while True:
        try:
            return Design.model_validate_json(json.dumps(raw, default=str), strict=True), problems
        except ValidationError as error:
            problems += problems_of(error, Design, raw)
            wrong = {str(detail["loc"][0]) for detail in error.errors()}
            if "matrix" in wrong:
                raise ScenarioError(problems) from None
            raw = {key: value for key, value in raw.items() if key not in wrong}


def _impossible_keys(settings: Sequence[Settings]) -> list[Problem]:
    return [
        Problem(f"matrix.{key}", "belongs to the study as a whole and cannot vary")
        for key in keys_of(settings)
        if key.split(".")[0] in _OF_THE_STUDY
    ]


def _document_of(base: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The scenario of a cell, unchecked. A whole table is set before what lies in it."""
    raw: dict[str, Any] = copy.deepcopy(dict(base))
    problems = []
    for path in sorted(settings, key=lambda path: path.count(".")):
        try:
            put(raw, path, copy.deepcopy(settings[path]))
        except LookupError as error:
            problems.append(Problem(f"matrix.{path}", str(error.args[0])))
    if problems:
        raise ScenarioError(problems)
    return raw


def _claims(
    expectations: Sequence[Expectation], cells: Sequence[StudyCell]
) -> tuple[list[Problem], list[Claim]]:
    problems: list[Problem] = []
    claims: list[Claim] = []
    for index, expectation in enumerate(expectations):
        told = list(_wrong_keys(expectation, keys_of([cell.settings for cell in cells])))
        for where, path, single in [] if told else _singles(expectation):
            matched = [cell for cell in cells if _chosen(cell, where)]
            if not matched:
                told.append(Problem(path, f"no cell of the matrix has {_words(where)}"))
            for cell in matched:
                told += _unscored(single, cell)
            if single.against is not None:
                claims.append(Claim(single, tuple(cell.name for cell in matched), None))
                continue
            for cell in matched:
                other = _counterpart(cell, single.minus, cells)
                if single.minus and other is None:
                    message = f"there is no cell that is as {cell.name} but has "
                    told.append(Problem("minus", message + _words(single.minus)))
                claims.append(Claim(single, (cell.name,), None if other is None else other.name))
        problems += [Problem(f"expect.{index}.{p.path}", p.message) for p in told]
    return list(dict.fromkeys(problems)), claims


def _joined(key: str, cells: Sequence[StudyCell]) -> tuple[list[Problem], dict[str, str]]:
    """For each cell whose global model nothing tests, the one that is tested in its place."""
    keys = keys_of([cell.settings for cell in cells])
    if key not in keys:
        message = f"{key!r} is no key of the matrix; there are: {', '.join(keys) or 'none'}."
        return [Problem("join", message + nearest(key, keys))], {}
    problems: list[Problem] = []
    beside: dict[str, str] = {}
    tested = [cell for cell in cells if cell.scenario.federation.evaluate]
    for cell in cells:
        if cell.scenario.federation.evaluate or key not in cell.settings:
            continue
        others = [each.name for each in tested if each.settings.get(key) == cell.settings[key]]
        if len(others) == 1:
            beside[cell.name] = others[0]
        else:
            place = _words({key: cell.settings[key]})
            found = f"{len(others)} cells" if others else "no cell"
            problems.append(Problem("join", f"{found} with {place} and federation.evaluate = true"))
    return list(dict.fromkeys(problems)), beside


def _wrong_keys(expectation: Expectation, keys: Sequence[str]) -> Iterator[Problem]:
    named = [("where", key) for key in expectation.where]
    named += [("minus", key) for key in expectation.minus]
    if expectation.over not in (None, OVER_ROUNDS):
        named.append(("over", str(expectation.over)))
    listed = ", ".join(keys) or "none"
    for field, key in named:
        if key not in keys:
            yield Problem(
                field, f"{key!r} is no key of the matrix; there are: {listed}.{nearest(key, keys)}"
            )


def _singles(
    expectation: Expectation,
) -> Iterator[tuple[Mapping[str, JsonValue], str, Expectation]]:
    """An expectation as single values: which cells, the key path that says so, the value."""
    if expectation.over is None:
        yield expectation.where, "where", expectation
        return
    for key, value in expectation.values.items():
        single = expectation.model_copy(update={"value": value, "over": None, "values": {}})
        where = dict(expectation.where)
        if expectation.over == OVER_ROUNDS:
            single = single.model_copy(update={"round": int(key)})
        else:
            where[expectation.over] = key
        yield where, f"values.{key}", single


def _chosen(cell: StudyCell, where: Mapping[str, JsonValue]) -> bool:
    return all(key in cell.settings and same(v, cell.settings[key]) for key, v in where.items())


def _counterpart(
    cell: StudyCell, changes: Mapping[str, JsonValue], cells: Sequence[StudyCell]
) -> StudyCell | None:
    """The cell with the same settings but for the changes."""
    if not changes:
        return None
    kept = {key: value for key, value in cell.settings.items() if key not in changes}
    for other in cells:
        if (
            other.settings.keys() == cell.settings.keys()
            and _chosen(other, changes)
            and all(other.settings[key] == value for key, value in kept.items())
        ):
            return other
    return None


def _unscored(expectation: Expectation, cell: StudyCell) -> Iterator[Problem]:
    if (absent := no_such_round(expectation, cell.scenario)) is not None:
        yield Problem("round", absent)
    if expectation.metric in MODEL_METRICS:
        if not cell.scenario.federation.evaluate:
            yield Problem("metric", "federation.evaluate is false: nothing measures the model")
    elif (defense := reported_by(expectation.metric)) is not None:
        if defense not in (there := labels(cell.scenario.client.defenses)):
            listed = ", ".join(there) or "none"
            message = f"no defense {defense!r} reports it; client.defenses has: {listed}."
            yield Problem("metric", message + nearest(defense, there))
    elif needs_audit(expectation.metric) and (
        unscored := not_audited(expectation, cell.scenario.audit)
    ):
        yield Problem(unscored[0] or "metric", unscored[1])
    if expectation.against is not None:
        if expectation.attack is None and len(cell.scenario.audit.attacks) > 1:
            yield Problem("attack", "several attacks score the samples: name one of them")
        other = expectation.model_copy(update={"metric": expectation.against, "against": None})
        for problem in _unscored(other, cell):
            yield Problem("against" if problem.path == "metric" else problem.path, problem.message)


def _words(settings: Mapping[str, JsonValue]) -> str:
    return ", ".join(f"{key} = {label(value)}" for key, value in settings.items())
