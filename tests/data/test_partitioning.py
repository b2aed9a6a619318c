from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedleak.data import PARTITIONS, Partition
from fedleak.data.partitioning import (
    DirichletPartition,
    IidPartition,
    NaturalPartition,
    PathologicalPartition,
    SizesPartition,
)
from fedleak.records import Dataset
from fedleak.seeding import derive

ALL = (
    IidPartition(),
    SizesPartition(sizes=(200, *range(20, 31))),
    PathologicalPartition(classes_per_client=3),
    DirichletPartition(alpha=0.3),
    NaturalPartition(by="writer"),
)


def test_every_partition_is_tested() -> None:
    assert {type(partition) for partition in ALL} == set(PARTITIONS)


@pytest.mark.parametrize("partition", ALL, ids=lambda p: p.kind)
def test_disjoint_sorted_and_reproducible(partition: Partition, toy: Dataset) -> None:
    assigned = partition.assign(toy, 12, seed=5)
    assert len(assigned) == 12
    together = np.concatenate(assigned)
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0
    assert together.max() < len(toy)
    for indices in assigned:
        assert indices.dtype == np.int64
        assert np.all(np.diff(indices) > 0)
    again = partition.assign(toy, 12, seed=5)
    assert all(map(np.array_equal, assigned, again))


@pytest.mark.parametrize("partition", ALL[:4], ids=lambda p: p.kind)
def test_another_seed_another_partition(partition: Partition, toy: Dataset) -> None:
    first, second = (partition.assign(toy, 12, seed=seed) for seed in (0, 1))
    assert not all(map(np.array_equal, first, second))


@pytest.mark.parametrize("partition", ALL, ids=lambda p: p.kind)
def test_silent_and_offline(
    partition: Partition,
    toy: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("network used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    partition.assign(toy, 12, seed=0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("partition", ALL, ids=lambda p: p.kind)
def test_the_cap_takes_a_random_part(partition: Partition, toy: Dataset) -> None:
    whole = partition.assign(toy, 12, seed=5)
    capped = partition.model_copy(update={"max_samples": 9}).assign(toy, 12, seed=5)
    assert [len(indices) for indices in capped] == [min(9, len(i)) for i in whole]
    assert all(np.isin(part, indices).all() for part, indices in zip(capped, whole, strict=True))
    assert not all(
        np.array_equal(part, indices[:9]) for part, indices in zip(capped, whole, strict=True)
    )


def test_iid_shares_are_equal_and_mixed(toy: Dataset) -> None:
    in_order = Dataset(toy.inputs, np.sort(toy.labels), 10)
    assigned = IidPartition().assign(in_order, 7, seed=0)
    assert sorted(map(len, assigned)) == [142] * 1 + [143] * 6
    assert sorted(np.concatenate(assigned)) == list(range(1000))
    # Each class has 100 of 1000 samples: about 14 of 143, with a standard deviation of
    # sqrt(143 * 0.1 * 0.9 * 857/999) = 3.3; 6 of them are never left.
    for indices in assigned:
        counts = np.bincount(in_order.labels[indices], minlength=10)
        assert np.abs(counts - 14.3).max() < 20


def test_pathological_gives_each_client_its_classes(toy: Dataset) -> None:
    assigned = PathologicalPartition(classes_per_client=2).assign(toy, 20, seed=3)
    held = [np.unique(toy.labels[indices]).tolist() for indices in assigned]
    assert all(len(classes) == 2 for classes in held)
    assert all(client % 10 in classes for client, classes in enumerate(held))
    # A class's 100 samples are shared evenly among those who hold it.
    for label in range(10):
        holders = [i for i, classes in enumerate(held) if label in classes]
        shares = [int((toy.labels[assigned[i]] == label).sum()) for i in holders]
        assert sum(shares) == 100
        assert max(shares) - min(shares) <= 1


def test_dirichlet_alpha_sets_how_alike_clients_are(toy: Dataset) -> None:
    def largest_share(alpha: float) -> float:
        """Mean over clients of the share of a client's most frequent class."""
        assigned = DirichletPartition(alpha=alpha).assign(toy, 5, seed=2)
        return float(np.mean([np.bincount(toy.labels[i]).max() / len(i) for i in assigned]))

    assert largest_share(1e6) == pytest.approx(0.1, abs=0.01)
    assert largest_share(0.1) > 0.25


def test_dirichlet_repeats_until_everybody_has_enough(toy: Dataset) -> None:
    partition = DirichletPartition(alpha=0.3, min_samples=35)
    first_draws = [
        min(map(len, partition._draw(toy, 10, derive(seed, "partition-0")))) for seed in range(15)
    ]
    assert min(first_draws) < 35  # so some of the seeds need a second draw
    for seed in range(15):
        assert min(map(len, partition.assign(toy, 10, seed=seed))) >= 35


def test_natural_clients_are_the_first_ids(toy: Dataset) -> None:
    assigned = NaturalPartition(by="writer").assign(toy, 12, seed=0)
    for client, indices in enumerate(assigned):
        assert np.array_equal(indices, np.flatnonzero(toy.attributes["writer"] == f"w{client:02d}"))


def test_sizes_are_as_told(toy: Dataset, refused: Callable[..., str]) -> None:
    assigned = SizesPartition(sizes=(700, 100, 1)).assign(toy, 3, seed=0)
    assert list(map(len, assigned)) == [700, 100, 1]
    # 70 of each class, with a standard deviation of sqrt(700 * .1 * .9 * 300/999) = 4.3.
    assert np.abs(np.bincount(toy.labels[assigned[0]]) - 70).max() < 26
    path = "partition.sizes"
    three, many = SizesPartition(sizes=(9, 9, 9)), SizesPartition(sizes=(900, 101))
    assert "3 sizes for 2 clients" in refused(path, three.assign, toy, 2, 0)
    assert "1001 samples" in refused(path, many.assign, toy, 2, 0)


@pytest.mark.parametrize("partition", ALL, ids=lambda p: p.kind)
def test_more_clients_than_samples(
    partition: Partition, toy: Dataset, refused: Callable[..., str]
) -> None:
    message = refused("partition", partition.assign, toy, 1001, 0)
    assert "1001" in message
    assert "1000" in message


def test_an_empty_client_is_named(refused: Callable[..., str]) -> None:
    few = Dataset(np.zeros((12, 1), np.uint8), np.zeros(12, np.int64), 1)
    message = refused("partition", DirichletPartition(alpha=0.001).assign, few, 3, 0)
    assert "client-00" in message
    assert "Raise alpha" in message


def test_too_many_classes_per_client(toy: Dataset, refused: Callable[..., str]) -> None:
    partition = PathologicalPartition(classes_per_client=11)
    message = refused("partition.classes_per_client", partition.assign, toy, 3, 0)
    assert "11" in message
    assert "10" in message


def test_a_class_with_too_few_samples_to_share(refused: Callable[..., str]) -> None:
    rare = Dataset(np.zeros((50, 1), np.uint8), np.array([0] * 49 + [1]), 2)
    partition = PathologicalPartition(classes_per_client=2)
    assert "1" in refused("partition", partition.assign, rare, 3, 0)


def test_natural_needs_the_attribute_and_enough_ids(
    toy: Dataset, refused: Callable[..., str]
) -> None:
    message = refused("partition.by", NaturalPartition(by="writr").assign, toy, 3, 0)
    assert "Did you mean 'writer'?" in message
    message = refused("partition", NaturalPartition(by="writer").assign, toy, 21, 0)
    assert "21" in message
    assert "20" in message


def test_real_writers_are_clients(real_data: Path) -> None:
    from fedleak.data.npz import Npz

    file = real_data / "femnist-digits" / "femnist_digits_12clients.npz"
    train = Npz(path=file, x_train="x", y_train="y", attributes=("client",)).load().train
    assigned = NaturalPartition(by="client").assign(train, 12, seed=0)
    for client, indices in enumerate(assigned):
        assert set(train.attributes["client"][indices]) == {client}
    assert sum(map(len, assigned)) == len(train)
