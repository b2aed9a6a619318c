"""How numbers and counts are written, the same in the terminal and on the page."""

from __future__ import annotations

import math

MISSING = "–"


def decibel(value: float | None) -> str:
    """A PSNR without its unit; ``∞`` is an exact copy."""
    return _number(value, ".1f")


def ratio(value: float | None) -> str:
    """A similarity."""
    return _number(value, ".3f")


def percent(value: float | None) -> str:
    """A share."""
    return _number(value, ".0%")


def plain(value: float | None) -> str:
    """Any other number, to four digits."""
    return _number(value, ".4g")


def share(value: float | None, samples: int) -> str:
    """A share of samples: ``yes`` or ``no`` where there is a single one."""
    if value is not None and samples == 1 and value in (0.0, 1.0):
        return "yes" if value else "no"
    return _number(value, ".0%")


def interval(low: float, high: float) -> str:
    """The ends of an interval; missing where it has none."""
    if math.isnan(low) or math.isnan(high):
        return MISSING
    return f"{plain(low)} to {plain(high)}"


def requirement(comparison: str, value: float, tolerance: float) -> str:
    """A published value or limit, for example ``≥ 20 ± 0.5``."""
    sign = {">=": "≥", "<=": "≤", "==": "="}.get(comparison, comparison)
    margin = f" ± {plain(tolerance)}" if tolerance else ""
    return f"{sign} {plain(value)}{margin}"


def one_line(reason: str) -> str:
    """A recorded reason as one line: of a traceback the last, which names the error."""
    lines = reason.split("\n") if reason else ["no reason was recorded"]
    filled = [line.strip() for line in lines if line.strip()]
    return filled[-1] if filled[0].startswith("Traceback") else " ".join(filled)


def count(number: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _number(value: float | None, form: str) -> str:
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return format(value, form).replace("-", "−", 1) if value < 0 else format(value, form)
