"""The malicious central party: sends weights that make updates contain their samples."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from pydantic import Field
from torch import nn

from fedleak.captures import CaptureStore
from fedleak.errors import Problem
from fedleak.seeding import stream
from fedleak.traps import NoTrap, ScalingSearch, best_scaling, set_trap, trapped_layer
from server_strategies.central_party import CentralParty, Party, Served
from server_strategies.interception import Arrays, arrays_of
from server_strategies.roster import Roster


class TrapWeights(CentralParty):
    """Wraps any Flower strategy and sends trap weights to the clients it targets.

    Boenisch et al., *When the Curious Abandon Honesty*. A targeted client gets the model
    of the round with the weights of its first layers replaced (`fedleak.traps.set_trap`);
    its update then contains its samples, which the ``analytic`` attack reads out. The
    other clients get the honest model, bit for bit. Captures hold what was really sent.

    A targeted client's update belongs to another model than the one that is trained: it
    is not handed on to the wrapped strategy, nor are its metrics. The global model goes on
    learning from the others (§10.2), and stands still in a round in which all are
    targeted. One trap is made per round, from a named stream of the seed.

    Under secure aggregation a targeted client's update is seen in the sum of its group only,
    on top of those of members that got the honest model and use the trap's neurons for
    whatever they like; and the whole group is lost to the global model. A sum can be read
    where all of a group are targeted.

    In a Flower app of your own, samples must reach ``model`` in [0, 1]: put what your
    transforms do after that into the model, or the trap misses
    (`fedleak.models.normalised`). Nothing here can warn of it, as no sample is seen: an
    audit does, from ``--mean`` or from what several neurons agree on.

    Args:
        inner: As of `CentralParty`, as are ``store`` and the keywords not named here.
        model: The architecture, to find its layers; its parameter values mean nothing.
        input_shape: ``*input`` of one sample.
        scaling: The paper's s, in (0, 1); None to look for it over the rounds, by how many
            neurons the updates show as active (`fedleak.traps.ScalingSearch`).
        sigma: Standard deviation of the trap weights.
        layer: Name of the dense layer that is the trap; None for the first one.
        hidden: Whether layers that pass samples on hide it.
        clients: Partition ids of the targeted clients; None for all. Where nobody says
            which node holds which partition, it is known from a client's first reply on.
        rounds: Rounds with trap weights; None for all.
        train_mode: Whether clients train in train mode.
        seed: Fixes the draws.

    Raises:
        NoTrap: From `configure_train`: the model cannot be turned into a trap.
    """

    def __init__(
        self,
        inner: Strategy,
        store: CaptureStore,
        *,
        model: nn.Module,
        input_shape: tuple[int, ...],
        scaling: float | None,
        sigma: float,
        layer: str | None = None,
        hidden: bool = False,
        clients: Collection[int] | None = None,
        rounds: Collection[int] | None = None,
        train_mode: bool = True,
        seed: int = 0,
        **party: Any,
    ) -> None:
        super().__init__(inner, store, **party)
        self.model = model
        self.input_shape = input_shape
        self.search = ScalingSearch() if scaling is None else None
        self.scaling = scaling
        self.sigma = sigma
        self.layer = layer
        self.hidden = hidden
        self.clients = clients
        self.rounds = rounds
        self.train_mode = train_mode
        self.seed = seed
        self._trapped: set[int] = set()
        self._standing: ArrayRecord | None = None
        self._bias: tuple[str, npt.NDArray[np.generic]]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As every central party does; the global model is remembered."""
        self._standing = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def outgoing(self, server_round: int, messages: list[Message]) -> None:
        """Give targeted clients' messages a record of their own, with trap weights."""
        self._trapped = set()
        if self.rounds is not None and server_round not in self.rounds:
            return
        made: dict[int, RecordDict] = {}
        for message in messages:
            node = message.metadata.dst_node_id
            if self.clients is None or self.partition(node) in self.clients:
                shared = message.content
                if id(shared) not in made:
                    made[id(shared)] = self._trap(server_round, shared)
                message.content = made[id(shared)]
                self._trapped.add(node)

    def aggregate(
        self, server_round: int, replies: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the wrapped strategy aggregate the replies of clients that were not targeted."""
        if self.search is not None:
            self._learn(self.search, replies)
        lost = self.together_with(self._trapped)
        others = [reply for reply in replies if reply.metadata.src_node_id not in lost]
        if self._trapped and not any(reply.has_content() for reply in others):
            return self._standing, None
        return super().aggregate(server_round, others)

    def aim(self, group: list[int]) -> int:
        """A targeted member where there is one."""
        return next((node for node in group if node in self._trapped), group[0])

    def _learn(self, search: ScalingSearch, replies: list[Message]) -> None:
        """Take in how many neurons of the trap the clients' samples activated."""
        key, sent = self._bias
        # A bias that did not move is that of a neuron which no sample activated.
        active = [
            float((arrays_of(reply.content)[key] != sent).mean())
            for reply in replies
            if reply.has_content() and reply.metadata.src_node_id in self._trapped
        ]
        if active:
            search.saw(float(np.median(active)))

    def _trap(self, server_round: int, content: RecordDict) -> RecordDict:
        """A copy of what was to be sent, with trap weights."""
        (key,) = content.array_records
        scaling = self.scaling if self.search is None else self.search.scaling
        arrays = arrays_of(content)
        trapped = trapped_arrays(
            arrays,
            self.model,
            self.train_mode,
            self.input_shape,
            scaling=scaling,
            sigma=self.sigma,
            layer=self.layer,
            hidden=self.hidden,
            rng=stream(self.seed, "trap-weights", round=server_round),
        )
        bias = f"{trapped_layer(self.model, self.input_shape, self.layer)}.bias"
        name = _names(arrays, self.model)[bias]
        self._bias = name, trapped[name]
        record = ArrayRecord({name: Array(value) for name, value in trapped.items()})
        return RecordDict({**content, key: record})


def trapped_arrays(
    arrays: Arrays,
    model: nn.Module,
    train_mode: bool,
    input_shape: tuple[int, ...],
    **settings: Any,
) -> Arrays:
    """A state dict's arrays with trap weights (`set_trap`), names, order and types kept."""
    names = _names(arrays, model)
    tensors = {name: torch.from_numpy(arrays[key].copy()) for name, key in names.items()}
    made = set_trap(model, tensors, train_mode, input_shape, **settings)
    changed = {names[name]: tensor.numpy() for name, tensor in made.items()}
    return {
        key: changed[key].astype(array.dtype) if key in changed else array
        for key, array in arrays.items()
    }


def _names(arrays: Arrays, model: nn.Module) -> dict[str, str]:
    """By the names of the model's tensors, those under which they travel."""
    names = {name: name for name in model.state_dict()}
    if set(arrays) != set(names) and all(name.isdecimal() for name in arrays):
        # A list of NumPy arrays travels as "0", "1", ... in the state dict's order.
        names = dict(zip(names, sorted(arrays, key=int), strict=False))
    if set(arrays) != set(names.values()):
        raise NoTrap("the arrays that the wrapped strategy sends are not those of the model")
    return names


class TrapWeightsParty(Party):
    """Sends chosen clients, in chosen rounds, weights that make them leak (`TrapWeights`)."""

    kind: Literal["trap-weights"] = "trap-weights"
    scaling: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="the paper's s, size of positive weights in that of negative ones; best "
        "near 0.7 on MNIST, 0.95 on CIFAR-10, 0.99 on ImageNet and on texts; default: found by "
        "tuning",
    )
    tuning: Literal["similar-data", "updates"] = Field(
        "similar-data",
        description="what the scaling is found from: a batch of the held-out data, or the "
        "updates received, over rounds",
    )
    sigma: float = Field(
        0.001,
        gt=0,
        le=1e3,
        description="standard deviation of trap weights; the paper has 0.5. Which samples are "
        "caught does not depend on it, but small weights lose less to rounding on their way",
    )
    layer: str | None = Field(
        None, description="name of the dense layer that is the trap; default the first one"
    )
    hidden: bool = Field(
        False, description="whether layers that pass samples on hide it by random scales"
    )
    clients: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="partition ids of the clients to target; default all"
    )
    rounds: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None, min_length=1, description="rounds with trap weights; default all"
    )

    def wrap(
        self,
        inner: Strategy,
        store: CaptureStore,
        served: Served,
        *,
        quorum: float,
        roster: Roster,
        secure_aggregation: int | None = None,
    ) -> Strategy:
        return TrapWeights(
            inner,
            store,
            model=served.model,
            input_shape=served.input_shape,
            train_mode=served.train_mode,
            seed=served.seed,
            quorum=quorum,
            roster=roster,
            secure_aggregation=secure_aggregation,
            scaling=self._scaling(served),
            **self.model_dump(exclude={"kind", "scaling", "tuning"}),
        )

    def problems(self, served: Served) -> Iterable[Problem]:
        if absent := [client for client in self.clients or () if client >= served.clients]:
            yield Problem(
                "server.clients",
                f"no client {', '.join(map(str, absent))}; there are {served.clients}, "
                f"0 to {served.clients - 1}.",
            )
        if absent := [number for number in self.rounds or () if number > served.rounds]:
            yield Problem(
                "server.rounds",
                f"no round {', '.join(map(str, absent))}; there are {served.rounds}.",
            )

    def model_sent(self, served: Served) -> nn.Module:
        model = copy.deepcopy(served.model)
        arrays = {
            name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()
        }
        trapped = trapped_arrays(
            arrays,
            model,
            served.train_mode,
            served.input_shape,
            rng=stream(served.seed, "trap-weights", round=min(self.rounds or (1,))),
            # Where the sample passes does not depend on it.
            scaling=self.scaling or 0.5,
            **self.model_dump(include={"sigma", "layer", "hidden"}),
        )
        model.load_state_dict({name: torch.from_numpy(a) for name, a in trapped.items()})
        return model

    def _scaling(self, served: Served) -> float | None:
        if self.scaling is not None or self.tuning == "updates":
            return self.scaling
        name = trapped_layer(served.model, served.input_shape, self.layer)
        neurons = len(served.model.get_parameter(f"{name}.bias"))
        rng = stream(served.seed, "trap-weights-tuning")
        return best_scaling(torch.from_numpy(served.similar), neurons, rng)
