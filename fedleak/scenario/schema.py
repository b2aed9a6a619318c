"""The scenario: one TOML file that says everything about a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from clients.defenses import DEFENSES, Defense
from fedleak.attacks import ATTACKS, Attack
from fedleak.components import OneOf
from fedleak.data import (
    PARTITIONS,
    SOURCES,
    CustomSource,
    IidPartition,
    Partition,
    Source,
)
from fedleak.measures import MEASURES, Measure
from fedleak.models import INITS, MODELS, Architecture, CustomModel, DefaultInit, Init
from fedleak.scenario.expectations import Expectation
from fedleak.scenario.matrix import Matrix
from server_strategies import PARTIES, Aggregation, HonestButCuriousParty, Party


class Section(BaseModel):
    """Base of the scenario's tables: immutable, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Federation(Section):
    """Who takes part, how often, and where it runs."""

    engine: Literal["inline", "ray", "deployment"] = Field(
        "inline",
        description="where the apps run: this process, Flower's simulation on Ray, or a SuperLink "
        "and SuperNodes (`fedleak deploy`)",
    )
    rounds: int = Field(1, ge=1, le=10_000, description="rounds of federated training")
    clients: int = Field(4, ge=1, le=100_000, description="clients that hold a partition each")
    clients_per_round: int | None = Field(
        None, ge=1, le=100_000, description="clients asked each round; default all"
    )
    evaluate: bool = Field(True, description="test the global model after each round")
    quorum: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of clients that must be connected, and of asked clients that must "
        "deliver, else the run stops",
    )
    patience: float = Field(
        120.0, gt=0, le=86_400, description="seconds to wait for clients to connect"
    )
    timeout: float = Field(
        3600.0, gt=0, le=864_000, description="seconds to wait for asked clients to deliver"
    )
    audit_data: bool = Field(
        False,
        description="in a deployment: whether the data set is an audit data set, which clients "
        "and auditor both hold; clients that opt in to it are scored, others never",
    )
    cpus_per_client: int = Field(
        1, ge=1, le=1024, description="CPUs that Ray books for each client that trains"
    )
    gpus_per_client: float = Field(
        0.0, ge=0, le=64, description="GPUs, or a share of one, that Ray books for each client"
    )

    @property
    def asked(self) -> int:
        """Clients asked each round."""
        return self.clients_per_round or self.clients


class Client(Section):
    """Local training, and what the client does against a central party that looks."""

    lr: float = Field(0.1, gt=0, le=1e6, description="learning rate of local SGD")
    momentum: float = Field(0.0, ge=0, lt=1, description="SGD momentum; starts anew each round")
    weight_decay: float = Field(0.0, ge=0, le=1e3, description="L2 penalty in SGD")
    batch_size: int = Field(1, ge=1, le=1_000_000, description="samples per step")
    local_steps: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="steps per round; 1 (FedSGD) if epochs is not set either",
    )
    local_epochs: int | None = Field(
        None, ge=1, le=10_000, description="passes over the client's samples per round (FedAvg)"
    )
    train_mode: bool = Field(True, description="dropout and batch norm in training mode")
    holdout: float = Field(
        0.0, ge=0, le=0.9, description="share of each client's samples kept for its evaluation"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where local training computes")
    defenses: tuple[Annotated[Defense, OneOf(DEFENSES)], ...] = Field(
        (), description="what a client does for its privacy, in this order"
    )

    @property
    def steps(self) -> int | None:
        """Local steps; None where epochs are given."""
        return None if self.local_epochs else (self.local_steps or 1)


class Audit(Section):
    """Which captures are attacked and measured, and how."""

    rounds: tuple[int, ...] | None = Field(
        None, min_length=1, description="rounds to audit; default all"
    )
    clients: tuple[int, ...] | None = Field(
        None, min_length=1, description="partition ids of clients to audit; default all captured"
    )
    attacks: tuple[Annotated[Attack, OneOf(ATTACKS)], ...] = Field(
        (), description="attacks run on each capture"
    )
    measures: tuple[Annotated[Measure, OneOf(MEASURES)], ...] = Field(
        (), description="measures computed of each capture, or of what was sent in each round"
    )
    known_labels: bool = Field(
        False, description="whether the threat model grants attacks the samples' labels"
    )
    executor: Literal["inline", "ray"] = Field(
        "inline",
        description="where attacks and measures run: this process, or a pool of Ray actors",
    )
    actors: int | None = Field(
        None, ge=1, le=4096, description="Ray actors at most; default as many as there is room for"
    )
    gpus_per_actor: float | None = Field(
        None,
        ge=0,
        le=64,
        description="GPUs, or a share of one, per actor; default the share by which as many "
        "actors as its memory holds use a GPU, 1 on an existing cluster",
    )
    address: str | None = Field(
        None, description="an existing Ray cluster; default a session of the auditor's own"
    )

    @property
    def tasks(self) -> tuple[Attack | Measure, ...]:
        """All that is to be done to captures."""
        return (*self.attacks, *self.measures)


class Scenario(Section):
    """A whole run. Each attribute is one table of the TOML file."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="names the run directory"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="fixes every random draw of the run")
    data: Annotated[Source, OneOf(SOURCES, CustomSource)] = Field(
        description="where samples come from"
    )
    partition: Annotated[Partition, OneOf(PARTITIONS, default=IidPartition)] = Field(
        IidPartition(), description="how samples are divided among clients"
    )
    model: Annotated[Architecture, OneOf(MODELS, CustomModel)] = Field(
        description="the network that is trained"
    )
    init: Annotated[Init, OneOf(INITS)] = Field(DefaultInit(), description="its initial weights")
    federation: Federation = Federation()
    client: Client = Client()
    server: Annotated[Party, OneOf(PARTIES, default=HonestButCuriousParty)] = Field(
        HonestButCuriousParty(), description="what the central party does"
    )
    aggregation: Aggregation = Field(Aggregation(), description="how updates become the next model")
    audit: Audit = Audit()
    expect: tuple[Expectation, ...] = Field((), description="values the audit must give")


class Design(Section):
    """What makes a scenario a study of several runs."""

    matrix: Matrix = Field(
        (),
        description='key path = list of values, for example "client.lr" = [0.1, 1.0]: one cell '
        "for each combination; several [[matrix]] tables add their combinations",
    )
    repeats: int = Field(
        1, ge=1, le=10_000, description="runs of each cell, each with a seed of its own"
    )
    keep_captures: bool = Field(
        True,
        description="in a study: keep what was captured after a run's audit; without it large "
        "studies need little disk, and cannot be audited again",
    )
    join: str | None = Field(
        None,
        description='key path of the matrix, for example "client.defenses": a cell whose global '
        "model nothing tests is shown with the accuracy and loss of the cell with the same value",
    )
    expect: tuple[Expectation, ...] = Field((), description="values the cells must give")


class ScenarioFile(Design, Scenario):
    """All that a scenario file may hold."""

    model_config = ConfigDict(title="Scenario")
