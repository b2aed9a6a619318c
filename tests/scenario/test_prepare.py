"""The truth that scoring uses is exactly what the clients trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

import clients.local_round
from fedleak.captures import CaptureStore
from fedleak.errors import ScenarioError
from fedleak.federation import run
from fedleak.records import Capture, partition_name
from fedleak.scenario import Prepared, load_scenario, prepare

Tiny = Callable[..., dict[str, Any]]
CLIENTS = 3


@dataclasses.dataclass
class Trained:
    """A finished federation and the batches its clients were seen to train on."""

    prepared: Prepared
    store: CaptureStore
    seen: dict[tuple[int, int], list[npt.NDArray[np.int64]]]

    def rounds(self) -> list[tuple[int, int]]:
        return [(int(c[-3:]), r) for r in self.store.rounds() for c in self.store.clients(r)]


@pytest.fixture
def trained(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trained]:
    def make(client: dict[str, Any], **partition: Any) -> Trained:
        scenario = load_scenario(
            tiny(
                client=client,
                federation={"clients": CLIENTS, "clients_per_round": 2, "rounds": 2},
                model={"kind": "mlp", "hidden": [16], "activation": "tanh"},
                partition={"kind": "iid", **partition},
                seed=7,
            )
        )
        prepared = prepare(scenario)
        batches: dict[bytes, list[npt.NDArray[np.int64]]] = {}
        train = clients.local_round.train

        def recording(model: Any, dataset: Any, chosen: Any, *rest: Any) -> float:
            loss: float = train(model, dataset, chosen, *rest)
            result = model.state_dict()["fc1.weight"].numpy().tobytes()
            batches[result] = [np.array(batch) for batch in chosen]
            return loss

        monkeypatch.setattr(clients.local_round, "train", recording)
        store = CaptureStore(run(scenario, directory=tmp_path / "run"))
        made = Trained(prepared, store, {})
        for partition_id, round in made.rounds():
            # Whose batches they were: only that client sent back just these weights.
            received = store.load(round, partition_name(partition_id)).received
            made.seen[partition_id, round] = batches.pop(received["fc1.weight"].tobytes())
        assert not batches
        return made

    return make


SETTINGS = [
    pytest.param({"batch_size": 1}, {}, id="one sample, one step"),
    pytest.param({"batch_size": 4, "lr": 0.5}, {}, id="a batch, one step"),
    pytest.param({"batch_size": 4, "weight_decay": 0.1}, {}, id="weight decay"),
    pytest.param({"batch_size": 3, "local_steps": 3}, {}, id="steps within an epoch"),
    pytest.param(
        {"batch_size": 3, "local_steps": 3, "momentum": 0.9, "weight_decay": 0.05},
        {},
        id="steps with momentum and weight decay",
    ),
    pytest.param(
        {"batch_size": 4, "local_epochs": 1}, {"max_samples": 10}, id="a short last batch"
    ),
    pytest.param(
        {"batch_size": 8, "local_epochs": 3, "momentum": 0.5, "lr": 0.2},
        {"max_samples": 6},
        id="epochs of one batch",
    ),
    pytest.param(
        {"batch_size": 2, "local_epochs": 1, "holdout": 0.4},
        {"max_samples": 10},
        id="held-out samples",
    ),
]


@pytest.mark.parametrize(("client", "partition"), SETTINGS)
def test_the_update_is_that_of_training_on_the_truth(
    trained: Callable[..., Trained], client: dict[str, Any], partition: dict[str, Any]
) -> None:
    made = trained(client, **partition)
    assert len(made.rounds()) == 4
    for partition_id, round in made.rounds():
        capture = made.store.load(round, partition_name(partition_id))
        truth = made.prepared.truth(partition_id, round)
        inputs = torch.from_numpy(truth.inputs).double()
        expected = replay(made.prepared, capture, inputs, torch.from_numpy(truth.labels))
        for name, value in expected.items():
            sent, received = capture.sent[name], capture.received[name]
            update = (sent.astype(np.float64) - received) / made.prepared.scenario.client.lr
            scale = np.abs(value.numpy()).max()
            assert scale > 0
            # What float32 parameters of that size can carry.
            rounding = np.abs(sent).max() * 2.0**-23 / made.prepared.scenario.client.lr
            np.testing.assert_allclose(update, value, rtol=0, atol=1e-5 * scale + 4 * rounding)


def replay(
    prepared: Prepared, capture: Capture, inputs: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """SGD written out in float64 on consecutive batches of the truth: (start - end) / lr."""
    settings = prepared.scenario.client
    assert capture.facts is not None
    model = prepared.model().double()
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in capture.sent.items()})
    weights = dict(model.named_parameters())
    start = {name: value.detach().clone() for name, value in weights.items()}
    velocity = {name: torch.zeros_like(value) for name, value in start.items()}
    size = settings.batch_size
    cuts = [slice(at, at + size) for at in range(0, len(inputs), size)]
    for step in range(capture.facts.steps):
        cut = cuts[step % len(cuts)]
        loss = functional.cross_entropy(model(inputs[cut]), labels[cut])
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                decayed = gradient + settings.weight_decay * weight
                velocity[name] = settings.momentum * velocity[name] + decayed
                weight -= settings.lr * velocity[name]
    return {name: (start[name] - weights[name].detach()) / settings.lr for name in start}


@pytest.mark.parametrize(
    ("client", "partition"),
    [
        *SETTINGS,
        pytest.param({"batch_size": 3, "local_epochs": 3}, {"max_samples": 8}, id="epochs"),
    ],
)
def test_the_truth_is_what_the_clients_were_seen_to_use(
    trained: Callable[..., Trained], client: dict[str, Any], partition: dict[str, Any]
) -> None:
    made = trained(client, **partition)
    for (partition_id, round), used in made.seen.items():
        rederived = made.prepared.batches(partition_id, round)
        assert [batch.tolist() for batch in used] == [batch.tolist() for batch in rederived]
        first_use = list(dict.fromkeys(np.concatenate(used).tolist()))
        train = made.prepared.splits.train
        truth = made.prepared.truth(partition_id, round)
        np.testing.assert_array_equal(truth.inputs, train.samples(np.array(first_use)))
        np.testing.assert_array_equal(truth.labels, train.labels[first_use])
        kept, held = made.prepared.local(partition_id)
        assert set(first_use) <= set(kept.tolist())
        assert not set(kept.tolist()) & set(held.tolist())
        facts = made.store.load(round, partition_name(partition_id)).facts
        assert facts == made.prepared.facts(partition_id, round)
        assert facts is not None
        assert facts.steps == len(used)


def test_clients_and_rounds_draw_different_samples(tiny: Tiny) -> None:
    prepared = prepare(load_scenario(tiny(client={"batch_size": 8})))
    drawn = {
        (client, round): tuple(prepared.batches(client, round)[0].tolist())
        for client in (0, 1)
        for round in (1, 2)
    }
    assert len(set(drawn.values())) == 4
    other = prepare(load_scenario(tiny(client={"batch_size": 8}, seed=1)))
    assert tuple(other.batches(0, 1)[0].tolist()) != drawn[0, 1]


def test_a_model_starts_from_the_same_weights_each_time(tiny: Tiny) -> None:
    prepared = prepare(load_scenario(tiny()))
    first, second = prepared.model().state_dict(), prepared.model().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["fc1.weight"].data_ptr() != second["fc1.weight"].data_ptr()


def test_an_attack_that_cannot_work_is_refused_before_the_run(tiny: Tiny) -> None:
    with pytest.raises(ScenarioError) as caught:
        prepare(load_scenario(tiny(model={"kind": "lenet-dlg"})))
    (problem,) = caught.value.problems
    assert problem.path == "audit.attacks.0"
    assert problem.message.startswith("analytic is unsupported: needs a dense layer")


def test_an_expectation_of_a_layer_that_is_not_there_is_refused() -> None:
    raw = {
        "data": {"kind": "digits"},
        "model": {"kind": "lenet-dlg"},
        "audit": {"measures": [{"kind": "jacobian-sensitivity"}]},
        "expect": [
            {
                "metric": "jacobian-f-norm", "layer": "conv1", "minus_layer": "conv9",
                "comparison": ">=", "value": 0,
            }
        ],
    }  # fmt: skip
    with pytest.raises(ScenarioError, match=r"expect\.0\.minus_layer.*no layer 'conv9'.*conv1"):
        prepare(load_scenario(raw))
