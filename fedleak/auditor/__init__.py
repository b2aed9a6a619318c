"""The auditor: attacks on captures, scores against the truth."""

from fedleak.auditor.auditing import Audited, Progress, audit, check_attacks, follow
from fedleak.auditor.subject import Subject, subject_of_model, subject_of_scenario

__all__ = [
    "Audited",
    "Progress",
    "Subject",
    "audit",
    "check_attacks",
    "follow",
    "subject_of_model",
    "subject_of_scenario",
]
