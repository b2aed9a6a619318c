"""Studies: many runs of one scenario, their table and the published values beside it."""

from fedleak.studies.advice import Advice, Protected, advise
from fedleak.studies.aggregation import aggregate
from fedleak.studies.running import Progress, audit_study, resume, run, run_study

__all__ = [
    "Advice",
    "Progress",
    "Protected",
    "advise",
    "aggregate",
    "audit_study",
    "resume",
    "run",
    "run_study",
]
