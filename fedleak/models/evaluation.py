"""How good a model is on labelled samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedleak.records import Dataset, Indices

_BATCH = 500


def evaluate(
    model: nn.Module, dataset: Dataset, indices: Indices | None = None
) -> dict[str, float]:
    """Test a classifier in eval mode, on the device where it is.

    Args:
        model: Takes ``(n, *input)`` and gives logits ``(n, K)``; left in eval mode.
        dataset: Labelled samples.
        indices: Which of them to use; default all.

    Returns:
        ``loss``, the mean cross-entropy in nats, and ``accuracy`` in [0, 1].
    """
    chosen = np.arange(len(dataset)) if indices is None else indices
    device = next(model.parameters()).device
    model.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(chosen), _BATCH):
            batch = chosen[start : start + _BATCH]
            labels = torch.from_numpy(dataset.labels[batch]).to(device)
            outputs = model(torch.from_numpy(dataset.samples(batch)).to(device))
            loss += float(functional.cross_entropy(outputs, labels, reduction="sum"))
            correct += int((outputs.argmax(dim=1) == labels).sum())
    return {"loss": loss / len(chosen), "accuracy": correct / len(chosen)}
