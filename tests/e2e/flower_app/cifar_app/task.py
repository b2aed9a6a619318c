"""Model, data, training and testing; nothing here knows of FedLeak."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

# As in pyproject.toml; for starts that pass no run config.
DEFAULTS: dict[str, float | int] = {
    "num-server-rounds": 2,
    "samples-per-client": 8,
    "batch-size": 4,
    "local-epochs": 2,
    "lr": 0.05,
    "momentum": 0.9,
}

# What torchvision's Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)) does to pixels in [0, 1].
MEAN, STD = 0.5, 0.5


class Net(nn.Module):
    """A LeNet for 32x32 colour images, 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 5, padding=2)
        self.conv2 = nn.Conv2d(12, 24, 5, padding=2)
        self.fc1 = nn.Linear(24 * 8 * 8, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.avg_pool2d(torch.tanh(self.conv1(x)), 2)
        x = functional.avg_pool2d(torch.tanh(self.conv2(x)), 2)
        return self.fc2(torch.tanh(self.fc1(x.flatten(1))))


def settings(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """The run config, over the defaults."""
    return {**DEFAULTS, **run_config}


def load_images(partition: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """One client's images ``(n, 3, 32, 32)`` in [0, 1] and labels ``(n,)``."""
    if (folder := os.environ.get("FEDLEAK_DATA")) is None:
        return _drawn(partition, samples)
    (path,) = Path(folder, "cifar10").glob("*.npz")
    own = slice(partition * samples, (partition + 1) * samples)
    with np.load(path) as cifar10:
        images, labels = cifar10["x_train"][own], cifar10["y_train"][own]
    return images.transpose(0, 3, 1, 2).astype(np.float32) / 255, labels.astype(np.int64).ravel()


def load_data(partition: int, samples: int, batch_size: int) -> DataLoader:
    """One client's samples, normalised, in shuffled batches."""
    images, labels = load_images(partition, samples)
    normalised = (torch.from_numpy(images) - MEAN) / STD
    dataset = TensorDataset(normalised, torch.from_numpy(labels))
    return DataLoader(dataset, batch_size=batch_size, shuffle=True)


def train(net: nn.Module, loader: DataLoader, epochs: int, lr: float, momentum: float) -> float:
    """Train with SGD; returns the mean loss over all steps."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    net.train()
    losses = []
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return float(np.mean(losses))


def test(net: nn.Module, loader: DataLoader) -> tuple[float, float]:
    """Mean loss and accuracy."""
    net.eval()
    loss, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for images, labels in loader:
            logits = net(images)
            loss += functional.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
            count += len(labels)
    return loss / count, correct / count


def _drawn(partition: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures for want of photos: a disc in its class's hue before a blend of two colours."""
    rng = np.random.default_rng(partition)
    labels = rng.integers(0, 10, samples)
    rows, columns = np.mgrid[0:32, 0:32] / 31
    images = np.empty((samples, 3, 32, 32), dtype=np.float32)
    for image, label in zip(images, labels, strict=True):
        hue = 0.5 + 0.45 * np.cos(2 * np.pi * (label / 10 + np.arange(3) / 3))
        start, end = rng.uniform(0, 1, (2, 3, 1, 1))
        slope, (x, y), radius = rng.uniform(0, 1), rng.uniform(0.3, 0.7, 2), rng.uniform(0.2, 0.35)
        ground = start + (end - start) * (slope * rows + (1 - slope) * columns)
        inside = 1 / (1 + np.exp(((np.hypot(rows - y, columns - x) - radius) * 24).clip(-30, 30)))
        image[:] = ground + inside * (hue[:, None, None] - ground)
    return images, labels.astype(np.int64)
