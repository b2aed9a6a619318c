"""The auditor: attacks on captures, scores against the truth."""

from fedleak.auditor.auditing import Audited, audit
from fedleak.auditor.subject import Subject, subject_of_model, subject_of_scenario

__all__ = ["Audited", "Subject", "audit", "subject_of_model", "subject_of_scenario"]
