"""What an attack may see: all that the central party has, and nothing of the truth."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedleak.attacks import Attack
from fedleak.auditor import Subject, audit, subject_of_scenario
from fedleak.auditor.observe import observe
from fedleak.captures import CaptureStore
from fedleak.errors import CaptureError, ScenarioError
from fedleak.records import Capture, Observation, Truth
from fedleak.scenario import Prepared, Scenario


def reachable(root: object) -> Iterator[object]:
    """Everything that code holding ``root`` can get at through its attributes and items."""
    seen: set[int] = set()
    waiting: list[object] = [root]
    while waiting:
        here = waiting.pop()
        if id(here) in seen or isinstance(here, (str, bytes, int, float, type)):
            continue
        seen.add(id(here))
        yield here
        if isinstance(here, Mapping):
            waiting += [*here.keys(), *here.values()]
        elif isinstance(here, (list, tuple, set, frozenset)):
            waiting += here
        elif isinstance(here, FunctionType):
            waiting += [here.__closure__, here.__defaults__, here.__kwdefaults__, here.__dict__]
        elif isinstance(here, MethodType):
            waiting += [here.__self__, here.__func__]
        elif isinstance(here, functools.partial):
            waiting += [here.func, here.args, here.keywords]
        elif isinstance(here, CellType):
            waiting.append(here.cell_contents)
        elif hasattr(here, "__dict__"):
            waiting.append(vars(here))


def holds(root: object, truth: Truth) -> bool:
    """Whether a sample or a batch of the truth can be reached."""
    for thing in reachable(root):
        if isinstance(thing, torch.Tensor):
            thing = thing.detach().cpu().numpy()
        if isinstance(thing, Truth):
            return True
        if not isinstance(thing, np.ndarray) or thing.size < truth.inputs[0].size:
            continue
        flat = thing.reshape(-1).astype(np.float64)
        for sample in truth.inputs.astype(np.float64).reshape(len(truth.inputs), -1):
            for scale in (1, 255):
                starts = np.arange(flat.size - sample.size + 1)
                for offset, value in enumerate(sample * scale):
                    starts = starts[np.isclose(flat[starts + offset], value)]
                if starts.size:
                    return True
    return False


@pytest.fixture
def observed(captured: Path, scenario: Scenario) -> Observation:
    capture = CaptureStore(captured).load(1, "client-000")
    return observe(capture, subject_of_scenario(scenario))


def test_an_observation_leads_to_no_truth(observed: Observation, prepared: Prepared) -> None:
    assert not holds(observed, prepared.truth(0, 1))
    assert sum(isinstance(thing, torch.Tensor) for thing in reachable(observed)) >= 12


@pytest.mark.parametrize("hiding", ["attribute", "closure", "array", "partial", "mapping"])
def test_truth_would_be_found_wherever_it_hides(
    observed: Observation, prepared: Prepared, hiding: str
) -> None:
    truth = prepared.truth(0, 1)
    model = nn.Sequential(nn.Linear(4, 2))
    planted = dataclasses.replace(observed, model=model)
    if hiding == "attribute":
        model[0].register_buffer("kept", torch.from_numpy(truth.inputs[1:2]), persistent=False)
    elif hiding == "closure":
        model.register_forward_hook(lambda *_: print(truth.labels))
    elif hiding == "array":
        model.samples = prepared.splits.train.inputs
    elif hiding == "partial":
        model.hook = functools.partial(print, {"x": [truth.inputs]})
    else:
        planted = dataclasses.replace(
            observed, buffers={**observed.buffers, "x": torch.from_numpy(truth.inputs).double()}
        )
    assert holds(planted, truth)


def test_attacks_are_handed_observations_without_truth(
    directory: Path, scripted: Any, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, received = scripted.script, []

    def keep(observation: Observation) -> Any:
        received.append(observation)
        return script(observation)

    monkeypatch.setattr(scripted, "script", staticmethod(keep))
    audit(directory, attacks=[scripted()], rounds=[1])
    assert len(received) == 2
    for client, observation in enumerate(received):
        assert not holds(observation, prepared.truth(client, 1))


def test_the_update_is_what_was_sent_less_what_came_back(
    captured: Path, observed: Observation, scenario: Scenario
) -> None:
    capture = CaptureStore(captured).load(1, "client-000")
    assert list(observed.update) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    for name, update in observed.update.items():
        exact = capture.sent[name].astype(np.float64) - capture.received[name]
        np.testing.assert_array_equal(update, (exact / scenario.client.lr).astype(np.float32))
        np.testing.assert_array_equal(observed.parameters[name], capture.sent[name])
    assert observed.samples == 3
    assert observed.input_shape == (1, 8, 8)
    assert observed.classes == 10


class Normed(nn.Module):
    """A network with buffers, of whole numbers among them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.out = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.out(self.norm(x))
        return result


def subject_of(model: nn.Module, **facts: float) -> Subject:
    return Subject(model, (3,), 2, 0, lambda round, client: None, facts)


def capture_of(
    state: Mapping[str, torch.Tensor], rename: Callable[[int, str], str] = lambda _, name: name
) -> Capture:
    """A capture in which every weight lost as much as its place in the state dict."""
    sent, received = {}, {}
    for place, (name, value) in enumerate(state.items()):
        sent[rename(place, name)] = value.numpy().copy()
        received[rename(place, name)] = np.asarray(value.numpy() - place, value.numpy().dtype)
    return Capture(1, "node-17", sent, received, None)


FACTS = {"lr": 0.5, "steps": 1, "batch_size": 4, "examples": 9}


def test_arrays_without_names_come_in_the_order_of_the_state_dict() -> None:
    # Twelve of them: "10" and "11" must not come before "2".
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(6)))
    state = model.state_dict()
    named = observe(capture_of(state), subject_of(model, **FACTS))
    numbered = observe(capture_of(state, lambda place, _: str(place)), subject_of(model, **FACTS))
    for place, name in enumerate(state):
        torch.testing.assert_close(numbered.parameters[name], state[name])
        torch.testing.assert_close(numbered.update[name], named.update[name])
        torch.testing.assert_close(
            numbered.update[name], torch.full_like(state[name], 2.0 * place), rtol=0, atol=1e-5
        )


def test_buffers_are_no_part_of_the_update() -> None:
    model = Normed()
    observation = observe(capture_of(model.state_dict()), subject_of(model, **FACTS))
    assert (
        set(observation.update)
        == set(observation.parameters)
        == dict(model.named_parameters()).keys()
    )
    assert set(observation.buffers) == dict(model.named_buffers()).keys()
    assert observation.buffers["norm.num_batches_tracked"].dtype == torch.int64


def test_unknown_facts_are_asked_for() -> None:
    model = Normed()
    capture = dataclasses.replace(capture_of(model.state_dict()), disclosed={"lr": 0.1})
    with pytest.raises(ScenarioError) as caught:
        observe(capture, subject_of(model, steps=1, batch_size=4))
    (problem,) = caught.value.problems
    assert problem.path == "--fact"
    assert "round 1, node-17" in problem.message
    assert "the capture says lr = 0.1" in problem.message
    observation = observe(capture, subject_of(model, steps=1, batch_size=4, examples=9))
    assert observation.facts.lr == 0.1
    assert observation.facts.examples == 9


def test_stated_facts_overrule_a_capture(captured: Path, scenario: Scenario) -> None:
    capture = CaptureStore(captured).load(1, "client-000")
    subject = dataclasses.replace(subject_of_scenario(scenario), facts={"epochs": 2, "lr": 0.2})
    observation = observe(capture, subject)
    assert capture.facts is not None
    per_epoch = -(-capture.facts.examples // 3)
    assert observation.facts.steps == 2 * per_epoch
    assert observation.facts.lr == 0.2
    assert observation.facts.batch_size == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda arrays: arrays.pop("out.bias"), "of another model, it differs in out.bias"),
        (
            lambda arrays: arrays.update({f"x{i}": np.zeros(1) for i in range(9)}),
            "x0, x1, x2, x3, x4, x5 and 3 more",
        ),
        (
            lambda arrays: arrays.update({"out.bias": np.zeros(3, np.float32)}),
            r"out.bias has shape \(3,\) in the capture and \(2,\) in the model",
        ),
    ],
)
@pytest.mark.parametrize("where", ["sent", "received"])
def test_a_capture_of_another_model_is_refused(
    change: Callable[[dict[str, Any]], None], said: str, where: str
) -> None:
    model = Normed()
    capture = capture_of(model.state_dict())
    changed = dict(getattr(capture, where))
    change(changed)
    with pytest.raises(CaptureError, match=said) as caught:
        observe(dataclasses.replace(capture, **{where: changed}), subject_of(model, **FACTS))
    assert "round 1, node-17" in str(caught.value)


def test_a_capture_of_another_model_leaves_no_cell(
    directory: Path, scripted: type[Attack], scenario: Scenario
) -> None:
    subject = dataclasses.replace(subject_of_scenario(scenario), model=Normed())
    with pytest.raises(CaptureError, match="another model"):
        audit(directory, attacks=[scripted()], subject=subject)
    assert not (directory / "audit").exists()
