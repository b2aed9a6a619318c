"""The exception tree: what a user can act on, and the exit code each one sets.

FedLeakError
├── ScenarioError    2  the scenario asks for something that cannot be
├── ExpectationMissed 3  the run worked, a published value or limit was missed
├── CaptureError     4  a stored capture is damaged or missing
├── QuorumLost       5  too few clients were left to go on
├── ResourceError    6  the machine or its file system stands in the way
├── StudyIncomplete  7  runs of a study failed; the others and their table are there
├── UpdateRejected   -  one client's update was refused; the round goes on
├── RoundRefused     -  one client did not take part; the round goes on
├── AttackFailed     -  an attack came to nothing; its cell is recorded as failed
└── MeasureFailed    -  a measure is undefined for a capture; likewise

A user's mistake raises one of these and is printed without a traceback; any
other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class FedLeakError(Exception):
    """Root of every error that a user can act on."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a scenario.

    Attributes:
        path: Key path in the scenario, for example ``client.batch_size``; the
            empty string stands for the scenario as a whole.
        message: What is wrong there and what is allowed, one sentence or two.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ScenarioError(FedLeakError):
    """The scenario cannot run. Carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | Problem) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ExpectationMissed(FedLeakError):
    """At least one ``[[expect]]`` entry of the scenario was not met."""

    exit_code = 3


class CaptureError(FedLeakError):
    """A capture file is missing, cut short or altered. The message names the file."""

    exit_code = 4


class QuorumLost(FedLeakError):
    """Fewer clients than the quorum delivered a usable update in a round."""

    exit_code = 5


class ResourceError(FedLeakError):
    """Memory, disk, permissions or an existing path stand in the way."""

    exit_code = 6


class StudyIncomplete(FedLeakError):
    """Runs of a study failed. Their reasons are recorded; the others are finished."""

    exit_code = 7


class UpdateRejected(FedLeakError):
    """A client's update is unusable; it is recorded and left out of the round."""


class RoundRefused(FedLeakError):
    """A client takes no part in a round; it is recorded with the reason."""


class AttackFailed(FedLeakError):
    """An attack could not work on an observation, or all its candidates diverged."""


class MeasureFailed(FedLeakError):
    """A measure is undefined for what was captured."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest allowed word, or "" if none is close."""
    cutoff = 0.5 if len(word) <= 2 else 0.6  # of two letters one is as close as it gets
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=cutoff)
    return f" Did you mean {close[0]!r}?" if close else ""
