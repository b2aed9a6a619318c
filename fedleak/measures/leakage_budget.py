"""The gradient leakage budget: one summary of what a client lost in a round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean
from typing import Any

BUDGET = "leakage-budget"
EXCESS = "leakage-excess"
BUDGET_METRICS = (BUDGET, EXCESS)

_LEAKS = ("psnr", "token-accuracy")


def leakage_budget(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Summarise scores: of each client in each round, the sample that leaked most.

    An average over samples hides the ones that are exposed (Zhang et al., on the unfairness
    of privacy). The best attack on a sample counts for it.

    Args:
        rows: Scores, one for each cell, sample and metric, as the ledger has them.

    Yields:
        Two rows for each client and round that was scored, of the cell that got most:
        ``leakage-budget``, the most exposed sample's PSNR in dB or share of right tokens, and
        ``leakage-excess``, by how much that is above the mean over the client's samples. A
        sample that no attack found does not enter the mean.
    """
    best: dict[tuple[int, str], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row["metric"] in _LEAKS and row["sample"] >= 0 and not math.isnan(row["value"]):
            samples = best.setdefault((row["round"], row["client"]), {})
            known = samples.get(row["sample"])
            if known is None or row["value"] > known["value"]:
                samples[row["sample"]] = row
    for samples in best.values():
        most = max(samples.values(), key=lambda row: row["value"])
        excess = most["value"] - fmean(row["value"] for row in samples.values())
        yield {**most, "metric": BUDGET}
        yield {**most, "metric": EXCESS, "value": excess if math.isfinite(excess) else math.nan}
