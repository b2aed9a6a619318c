"""Data sources, the partitions that deal them out to clients, and clients' batches."""

from __future__ import annotations

from fedleak.data.batches import batch_sizes, batches, client_split, poisson_batches
from fedleak.data.custom import CustomSource
from fedleak.data.digits import Digits
from fedleak.data.image_folder import ImageFolder
from fedleak.data.mnist_5k import Mnist5k
from fedleak.data.npz import Npz
from fedleak.data.partitioning import (
    DirichletPartition,
    IidPartition,
    NaturalPartition,
    Partition,
    PathologicalPartition,
    SizesPartition,
)
from fedleak.data.source import Source
from fedleak.data.text_jsonl import TextJsonl
from fedleak.data.torchvision_sets import CelebA, Cifar10, Cifar100, FashionMnist, Lfw, Mnist

SOURCES = (
    Mnist5k,
    Digits,
    Mnist,
    FashionMnist,
    Cifar10,
    Cifar100,
    Lfw,
    CelebA,
    Npz,
    ImageFolder,
    TextJsonl,
)
PARTITIONS = (
    IidPartition,
    SizesPartition,
    PathologicalPartition,
    DirichletPartition,
    NaturalPartition,
)

__all__ = [
    "PARTITIONS",
    "SOURCES",
    "CustomSource",
    "IidPartition",
    "Partition",
    "Source",
    "batch_sizes",
    "batches",
    "client_split",
    "poisson_batches",
]
