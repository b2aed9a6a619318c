"""A stranger's Flower app, intercepted by two lines and audited by the real command.

``flower_app`` is an ordinary app: a LeNet on CIFAR-10 (drawn pictures where FEDLEAK_DATA is
not set), SGD with momentum over several local epochs, inputs normalised by 0.5 and 0.5.
Thresholds lie 2 to 4 dB below what was measured on both kinds of pictures.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.server.strategy import FedAvg as OlderFedAvg
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg

from fedleak.attacks import GS
from fedleak.auditor import audit, subject_of_model
from fedleak.captures import CaptureStore
from fedleak.errors import CaptureError, ResourceError, ScenarioError
from fedleak.federation.inline import run_inline
from fedleak.records import TrainingFacts
from server_strategies import HonestButCurious

APP = Path(__file__).parent / "flower_app"
FEDLEAK = Path(sysconfig.get_path("scripts")) / "fedleak"
NET = "--model cifar_app.task:Net --input-shape 3,32,32"
NORMALISED = "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5"
HALF = (0.5, 0.5, 0.5)
ONE_STEP = {"samples-per-client": 1, "batch-size": 1, "local-epochs": 1, "num-server-rounds": 1}
TWO_EPOCHS = {"samples-per-client": 2, "batch-size": 2, "local-epochs": 2, "num-server-rounds": 1}


@pytest.fixture(scope="module")
def task():
    """The app's module ``task``, importable as from its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(APP)
        from cifar_app import task

        yield task


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A copy of the app's folder, as working directory."""
    copy = tmp_path / "app"
    shutil.copytree(APP, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(copy)
    return copy


def federate(task, clients=2, **settings):
    """Run the app in process, in the working directory; the same settings, the same run."""
    from cifar_app.client_app import app as client_app
    from cifar_app.server_app import app as server_app

    random.seed(0)  # Flower samples the clients' order with it
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        for name, value in settings.items():
            patch.setitem(task.DEFAULTS, name, value)
        run_inline(server_app, client_app, clients)


def command(line, status=0):
    """Run ``fedleak`` as a user does; returns standard output and standard error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [FEDLEAK, *line.split()], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout, done.stderr


def scores(metric, attack=None, run=Path("captured")):
    rows = pq.read_table(run / "audit" / "results.parquet").to_pylist()
    return np.array(
        [r["value"] for r in rows if r["metric"] == metric and attack in (None, r["attack"])]
    )


def cells(run=Path("captured")):
    return [json.loads(path.read_bytes()) for path in (run / "audit" / "cells").glob("*.json")]


def truth_of(samples):
    """Write the truth module of clients that hold so many samples."""
    Path("few.py").write_text(
        "from cifar_app.task import load_images\n"
        "def truth(round, client):\n"
        f"    return load_images(int(client.removeprefix('client-')), {samples})\n",
        encoding="utf-8",
    )


def times(run=Path("captured")):
    return {path: path.stat().st_mtime_ns for path in (run / "audit" / "cells").iterdir()}


def grey(images):
    """PSNR in dB of a plain grey picture: what an attack reaches that knows nothing."""
    return -10 * np.log10(((images - 0.5) ** 2).mean((1, 2, 3)))


def test_captures_say_who_trained_and_how(task, place):
    federate(task)
    store = CaptureStore("captured")
    assert store.rounds() == [1, 2]
    for number in store.rounds():
        assert store.clients(number) == ["client-000", "client-001"]
        for client in store.clients(number):
            capture = store.load(number, client)
            assert set(capture.received) == set(task.Net().state_dict())
            # Two epochs of 8 samples in batches of 4.
            assert capture.facts == TrainingFacts(
                lr=0.05, steps=4, batch_size=4, examples=8, momentum=0.9
            )
    first, second = store.load(1, "client-000"), store.load(2, "client-000")
    assert any((first.sent[name] != second.sent[name]).any() for name in first.sent)


def test_the_final_model_is_the_same_without_the_two_lines(task, place, monkeypatch):
    from cifar_app import server_app

    federate(task, clients=3)
    watched = torch.load("final_model.pt")
    Path("final_model.pt").unlink()
    monkeypatch.setattr(server_app, "HonestButCurious", lambda inner, store, disclosed: inner)
    shutil.rmtree("captured")
    federate(task, clients=3)
    alone = torch.load("final_model.pt")
    assert not Path("captured").exists()
    assert list(watched) == list(alone)
    assert all(torch.equal(watched[name], alone[name]) for name in alone)


def test_on_flowers_own_simulation(task, place):
    script = (
        "from flwr.simulation import run_simulation\n"
        "from cifar_app.client_app import app as client_app\n"
        "from cifar_app.server_app import app as server_app\n"
        "run_simulation(server_app, client_app, num_supernodes=2, backend_config={\n"
        "    'client_resources': {'num_cpus': 1, 'num_gpus': 0.0},\n"
        "    'init_args': {'include_dashboard': False, 'num_cpus': 1}})\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(place), os.environ.get("PYTHONPATH")))),
        "HOME": str(place),
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    store = CaptureStore("captured")
    assert store.rounds() == [1, 2]
    final = torch.load("final_model.pt")
    received = []
    for client in ("client-000", "client-001"):
        capture = store.load(2, client)
        assert capture.facts is not None
        assert capture.facts.steps == 4
        received.append(capture.received)
    # The clients hold equally many samples, so FedAvg's model is the captures' plain mean.
    for name, tensor in final.items():
        mean = (received[0][name] + received[1][name]) / 2
        np.testing.assert_allclose(tensor.numpy(), mean, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_audits_several_local_epochs(task, place):
    federate(task, clients=2)
    out, _ = command(
        f"audit captured {NET} {NORMALISED} --truth truth:truth --rounds 1"
        " --attack gs --set gs.restarts=1 --set gs.iterations=30"
        " --attack idlg --set idlg.restarts=1 --set idlg.iterations=20"
    )
    assert [cell["status"] for cell in cells()] == ["done"] * 4
    assert all(cell["samples"] == 8 for cell in cells())
    assert len(scores("psnr")) == 4 * 8
    # Eight pictures share an update and no shuffle is disclosed: no picture comes back,
    # measured with 1000 iterations as well. The labels do, all of them.
    assert scores("label-accuracy").mean() >= 0.8
    assert "of 16 audited samples" in out
    page = Path("captured/report/index.html").read_text(encoding="utf-8")
    assert "client-001" in page
    assert "<img" in page


def test_pictures_leak_through_two_local_epochs_with_momentum(task, place):
    federate(task, **TWO_EPOCHS)
    truth_of(2)
    command(
        f"audit captured {NET} {NORMALISED} --truth few:truth --clients 0"
        " --attack gs --set gs.restarts=1 --set gs.iterations=500"
    )
    # Measured: 26.3 and 24.7 dB on CIFAR-10, 26.6 and 24.9 dB on drawn pictures.
    images, _ = task.load_images(0, 2)
    assert scores("psnr").min() >= 20
    assert (scores("psnr") >= grey(images) + 8).all()
    assert scores("label-accuracy").min() == 1


def test_one_step_on_one_picture_leaks_it(task, place):
    federate(task, clients=2, **ONE_STEP)
    asked = (
        f"audit captured {NET} {NORMALISED}"
        " --attack gs --set gs.restarts=1 --set gs.iterations=400"
        " --attack idlg --set idlg.restarts=2 --set idlg.iterations=250"
    )
    out, _ = command(asked)
    assert "No truth is available" in out
    assert [cell["status"] for cell in cells()] == ["done"] * 4
    assert len(scores("psnr")) == 0
    made = times()

    # The truth told later: the attacks are not run again, only scored.
    truth_of(1)
    out, _ = command(f"{asked} --truth few:truth")
    assert times() == made
    assert "2 of 2 audited samples were reconstructed" in out
    blank = grey(np.concatenate([task.load_images(partition, 1)[0] for partition in (0, 1)]))
    # Measured on CIFAR-10: gs 25.5 and 25.7 dB, idlg 21.6 and 21.4, grey 13.0 and 12.5.
    for attack, least in (("gs", 21), ("idlg", 19)):
        psnr = scores("psnr", attack)
        assert psnr.min() >= least
        assert (psnr >= blank + 6).all()
        assert (scores("label-accuracy", attack) == 1).all()


def test_an_app_that_normalises_has_to_say_so(task, place):
    federate(task, **ONE_STEP)
    truth_of(1)
    attack = GS(restarts=1, iterations=200, tv=1e-3)

    def psnr(**normalisation):
        subject = subject_of_model(
            "cifar_app.task:Net", (3, 32, 32), truth="few:truth", **normalisation
        )
        rows = audit("captured", attacks=[attack], clients=["client-000"], subject=subject).rows
        return [row["value"] for row in rows if row["metric"] == "psnr"]

    (ignored,) = psnr()
    # Another statement, another cell: nothing is taken over from the first.
    assert len(set(psnr(mean=HALF, std=HALF))) == 2
    told = max(psnr(mean=HALF, std=HALF))
    assert told >= ignored + 8


def test_facts_nobody_disclosed_are_given_by_hand(task, place):
    """An app that travels as plain arrays, names nobody, discloses nothing, on FedAdam."""
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message, context):
        net = task.Net()
        arrays = message.content["arrays"].to_numpy_ndarrays()
        state = dict(zip(net.state_dict(), map(torch.from_numpy, arrays), strict=True))
        net.load_state_dict(state)
        loader = task.load_data(context.node_config["partition-id"], 1, 1)
        task.train(net, loader, epochs=1, lr=0.05, momentum=0.9)
        arrays = ArrayRecord([tensor.numpy() for tensor in net.state_dict().values()])
        metrics = MetricRecord({"num-examples": 1, "odd": [1.0, 2.0], "grade": 0.5})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @server_app.main()
    def main(grid, context):
        torch.manual_seed(0)
        arrays = ArrayRecord([tensor.numpy() for tensor in task.Net().state_dict().values()])
        strategy = HonestButCurious(FedAdam(fraction_evaluate=0.0), CaptureStore("captured"))
        strategy.start(grid=grid, initial_arrays=arrays, num_rounds=1)

    run_inline(server_app, client_app, 2)
    names = CaptureStore("captured").clients(1)
    assert all(name.startswith("node-") for name in names)
    asked = (
        f"audit captured {NET} {NORMALISED} --clients {names[0]}"
        " --attack gs --set gs.restarts=1 --set gs.iterations=300"
    )
    _, err = command(asked, status=2)
    assert "--fact lr=" in err
    assert "the capture says examples = 1" in err
    assert not Path("captured/audit").exists()

    Path("few.py").write_text(
        "from cifar_app.task import load_images\n"
        "def truth(round, client):\n"
        # The inline engine's node i + 2 holds partition i.
        "    return load_images(int(client.removeprefix('node-')) - 2, 1)\n",
        encoding="utf-8",
    )
    command(f"{asked} --truth few:truth --fact lr=0.05 --fact batch_size=1 --fact epochs=1")
    (cell,) = cells()
    assert (cell["status"], cell["samples"]) == ("done", 1)
    assert scores("psnr").min() >= 20  # measured: 23.3 dB on CIFAR-10


@pytest.mark.parametrize(
    ("wrong", "option"),
    [
        ({"model": "cifar_app.task.Net"}, "--model"),
        ({"model": "cifar_app.tusk:Net"}, "--model"),
        ({"mean": (0.5,)}, "--mean"),
        ({"std": (0.5, 0.0, 0.5)}, "--std"),
        ({"input_shape": (3, 28, 28)}, "--input-shape"),
        ({"truth": "truth:lies"}, "--truth"),
    ],
)
def test_a_wrong_subject_is_refused_by_the_options_name(task, place, wrong, option):
    right = {"model": "cifar_app.task:Net", "input_shape": (3, 32, 32)}
    with pytest.raises(ScenarioError) as refused:
        subject_of_model(**{**right, **wrong})
    assert {problem.path for problem in refused.value.problems} == {option}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 2 * load_images(0, 1)[0] - 1, [1]", "before any normalisation"),
        ("return load_images(0, 1)[0][0], [1]", r"\(3, 32, 32\)"),
        ("return load_images(0, 1)[0], [1, 2]", r"labels \(2,\)"),
    ],
)
def test_a_truth_that_cannot_be_one_is_refused(task, place, monkeypatch, body, said):
    monkeypatch.delitem(sys.modules, "lies", raising=False)
    Path("lies.py").write_text(
        f"from cifar_app.task import load_images\ndef truth(round, client):\n    {body}\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(place)
    subject = subject_of_model("cifar_app.task:Net", (3, 32, 32), truth="lies:truth")
    with pytest.raises(ScenarioError, match=said):
        subject.truth(1, "client-000")


def test_a_capture_of_another_model_stops_the_audit(task, place, monkeypatch):
    federate(task, **ONE_STEP)
    Path("other.py").write_text(
        "from torch import nn\n"
        "def small(): return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(place)
    with pytest.raises(CaptureError, match="of another model"):
        audit("captured", attacks=[GS()], subject=subject_of_model("other:small", (3, 32, 32)))
    assert not Path("captured/audit").exists()


def test_a_store_in_use_is_refused_before_anybody_trains(task, place, monkeypatch):
    federate(task, **ONE_STEP)
    monkeypatch.setattr(task, "train", lambda *_: pytest.fail("a client trained"))
    with pytest.raises(ResourceError, match="append-only"):
        federate(task)


def test_mistakes_in_the_two_lines_are_named(tmp_path):
    store = CaptureStore(tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'batch_size'"):
        HonestButCurious(FedAvg(), store, disclosed={"lr": 0.1, "batchsize": 4})
    with pytest.raises(TypeError, match=r"flwr\.serverapp\.strategy"):
        HonestButCurious(OlderFedAvg(), store)
