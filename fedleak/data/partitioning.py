"""Who holds which samples: flwr-datasets' partitioners on our data sets."""

from __future__ import annotations

import contextlib
import io
import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedleak.components import Component
from fedleak.errors import Problem, ScenarioError, nearest
from fedleak.records import Dataset, Indices
from fedleak.seeding import derive, stream

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

PATH = "partition"


class Partition(Component, ABC):
    """A way to deal a data set out to clients, reproducible from the seed.

    The rows are shuffled first, so that the partitioners which cut consecutive rows do
    not follow the order of the source.
    """

    attempts: ClassVar[int] = 1
    """How often a draw that leaves a client short is repeated."""

    max_samples: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="samples each client keeps at most, chosen at random; all by default",
    )

    @property
    def least(self) -> int:
        """Samples every client must get, before the cap."""
        return 1

    def assign(self, dataset: Dataset, clients: int, seed: int) -> list[Indices]:
        """Deal the samples out.

        Args:
            dataset: The training samples.
            clients: Number of clients, >= 1.
            seed: The scenario's seed.

        Returns:
            For each partition id its sample numbers, sorted; no sample has two clients.

        Raises:
            ScenarioError: More clients than samples, a client left empty, or a partition
                that the data set does not allow.
        """
        if clients > len(dataset):
            message = (
                f"{clients} clients cannot share {len(dataset)} training samples; "
                "lower the number of clients or use more data."
            )
            raise ScenarioError(Problem(PATH, message))
        self._check(dataset, clients)
        for attempt in range(self.attempts):
            assigned = self._draw(dataset, clients, derive(seed, f"partition-{attempt}"))
            short = [i for i, indices in enumerate(assigned) if len(indices) < self.least]
            if not short:
                return [self._cap(indices, i, seed) for i, indices in enumerate(assigned)]
        names = ", ".join(f"client-{i:03d}" for i in short[:10])
        more = f" and {len(short) - 10} more" if len(short) > 10 else ""
        message = (
            f"{names}{more} would get fewer than {self.least} sample(s). {self._remedy(dataset)}"
        )
        raise ScenarioError(Problem(PATH, message))

    def _draw(self, dataset: Dataset, clients: int, seed: int) -> list[Indices]:
        import datasets

        order = np.random.default_rng(seed).permutation(len(dataset))
        columns: dict[str, npt.NDArray[np.generic]] = {
            "index": order,
            "label": dataset.labels[order],
        }
        columns |= {f"attribute {k}": v[order] for k, v in dataset.attributes.items()}
        partitioner = self._partitioner(clients, seed)
        # NaturalIdPartitioner draws a progress bar on stderr; the partitioners' warnings
        # advise on arguments that a scenario does not have.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                partitioner.dataset = datasets.Dataset.from_dict(columns)
                parts = [partitioner.load_partition(i)[:]["index"] for i in range(clients)]
            except ValueError as error:
                message = f"{type(self).kind_name()} partition of {clients} clients: {error}"
                raise ScenarioError(Problem(PATH, message)) from error
        return [np.sort(np.asarray(part, dtype=np.int64)) for part in parts]

    def _cap(self, indices: Indices, client: int, seed: int) -> Indices:
        if self.max_samples is None or len(indices) <= self.max_samples:
            return indices
        rng = stream(seed, "partition-cap", client=client)
        return np.sort(rng.choice(indices, size=self.max_samples, replace=False))

    def _check(self, dataset: Dataset, clients: int) -> None:
        """Refuse what the data set cannot give, before anything is drawn."""

    def _remedy(self, dataset: Dataset) -> str:
        return "Lower the number of clients."

    @abstractmethod
    def _partitioner(self, clients: int, seed: int) -> Partitioner: ...


class IidPartition(Partition):
    """Every client gets an equal share, drawn at random."""

    kind: Literal["iid"] = "iid"

    def _partitioner(self, clients: int, seed: int) -> Partitioner:
        from flwr_datasets.partitioner import IidPartitioner

        return IidPartitioner(num_partitions=clients)


class SizesPartition(Partition):
    """Every client gets as many samples as it is told, drawn at random; the rest is nobody's.

    Clients of unlike size: one that holds nearly all data and one that holds a batch.
    """

    kind: Literal["sizes"] = "sizes"
    sizes: tuple[Annotated[int, Field(ge=1, le=100_000_000)], ...] = Field(
        min_length=1, description="samples of each client, by partition id"
    )

    def _check(self, dataset: Dataset, clients: int) -> None:
        if len(self.sizes) != clients:
            message = f"{len(self.sizes)} sizes for {clients} clients; give one for each."
        elif sum(self.sizes) > len(dataset):
            message = f"{sum(self.sizes)} samples in all, but the data has {len(dataset)}."
        else:
            return
        raise ScenarioError(Problem(f"{PATH}.sizes", message))

    def _partitioner(self, clients: int, seed: int) -> Partitioner:
        from flwr_datasets.partitioner import SizePartitioner

        return SizePartitioner(partition_sizes=self.sizes)


class PathologicalPartition(Partition):
    """Every client holds samples of a few classes only.

    The first class of client ``i`` is class ``i mod K``, its others are drawn at random;
    a class's samples are shared evenly among the clients that hold it (Li et al. 2022,
    Federated Learning on Non-IID Data Silos, section IV). With fewer clients than
    classes, some classes may be nobody's.
    """

    kind: Literal["pathological"] = "pathological"
    classes_per_client: int = Field(
        2, ge=1, le=100_000, description="distinct classes each client holds"
    )

    def _check(self, dataset: Dataset, clients: int) -> None:
        classes = len(np.unique(dataset.labels))
        if self.classes_per_client > classes:
            message = f"{self.classes_per_client} classes per client, but the data has {classes}."
            raise ScenarioError(Problem(f"{PATH}.classes_per_client", message))

    def _partitioner(self, clients: int, seed: int) -> Partitioner:
        from flwr_datasets.partitioner import PathologicalPartitioner

        return PathologicalPartitioner(
            num_partitions=clients,
            partition_by="label",
            num_classes_per_partition=self.classes_per_client,
            class_assignment_mode="first-deterministic",
            seed=seed,
        )


class DirichletPartition(Partition):
    """Each class is shared among the clients in proportions drawn from Dirichlet(alpha).

    Small ``alpha`` makes clients unlike each other, large ``alpha`` tends to equal
    shares (Hsu et al. 2019). A draw that gives a client fewer than ``min_samples`` is
    repeated, ten draws at most.
    """

    attempts = 10

    kind: Literal["dirichlet"] = "dirichlet"
    alpha: float = Field(
        0.5, ge=1e-3, le=1e6, description="concentration of the Dirichlet distribution"
    )
    min_samples: int = Field(
        1, ge=1, le=100_000_000, description="samples every client must get, before the cap"
    )

    @property
    def least(self) -> int:
        """Samples every client must get, before the cap."""
        return self.min_samples

    def _remedy(self, dataset: Dataset) -> str:
        return (
            f"Raise alpha (now {self.alpha:g}), lower min_samples or lower the number of clients; "
            f"{self.attempts} draws from {len(dataset)} samples were tried."
        )

    def _partitioner(self, clients: int, seed: int) -> Partitioner:
        from flwr_datasets.partitioner import DirichletPartitioner

        # Repeating is done in `assign`, which can then say which clients are short.
        return DirichletPartitioner(
            num_partitions=clients,
            partition_by="label",
            alpha=self.alpha,
            min_partition_size=0,
            seed=seed,
        )


class NaturalPartition(Partition):
    """Every client is one value of an attribute, such as a writer.

    Where there are more values than clients, the first in sorted order become clients.
    """

    kind: Literal["natural"] = "natural"
    by: str = Field(description="attribute of the data whose values are the clients")

    def _check(self, dataset: Dataset, clients: int) -> None:
        if self.by not in dataset.attributes:
            known = ", ".join(dataset.attributes) or "none"
            message = f"the data has no attribute {self.by!r}, only: {known}."
            raise ScenarioError(
                Problem(f"{PATH}.by", message + nearest(self.by, dataset.attributes))
            )
        ids = len(np.unique(dataset.attributes[self.by]))
        if ids < clients:
            message = (
                f"{clients} clients, but attribute {self.by!r} has only {ids} distinct values; "
                f"use at most {ids} clients."
            )
            raise ScenarioError(Problem(PATH, message))

    def _partitioner(self, clients: int, seed: int) -> Partitioner:
        from flwr_datasets.partitioner import NaturalIdPartitioner

        return NaturalIdPartitioner(partition_by=f"attribute {self.by}")
