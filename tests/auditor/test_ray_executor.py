"""The Ray executor: same outcomes as inline, and what becomes of actors that die."""

from __future__ import annotations

import os
import shutil
from typing import Literal

import pytest
import torch

from fedleak import audit, load_scenario, run
from fedleak.attacks import Attack
from fedleak.auditor import executors
from fedleak.auditor.auditing import _plan
from fedleak.auditor.cells import finished
from fedleak.auditor.gpu_shares import actor_need, gpu_share
from fedleak.auditor.subject import subject_of_scenario
from fedleak.captures import CaptureStore, RunLayout
from fedleak.errors import ResourceError
from fedleak.private_ray import seclude_ray
from fedleak.records import Reconstruction, Setting
from fedleak.scenario import Audit

SCENARIO = {
    "name": "pool",
    "data": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [16]},
    "federation": {"rounds": 2, "clients": 3},
    "audit": {"attacks": [{"kind": "analytic"}, {"kind": "gs", "iterations": 5, "restarts": 2}]},
}


class Deadly(Attack):
    """Kills its worker on one client's update, so many times; a file keeps count."""

    kind: Literal["deadly"] = "deadly"
    victim: int
    deaths: int
    tally: str

    @property
    def appetite(self) -> int:
        return 3

    def unsupported(self, setting: Setting) -> str | None:
        return None

    def reconstruct(self, observation, seed, progress=None):
        client = round(float(observation.update["fc1.bias"].abs().sum()) * 1e6)
        if client == self.victim:
            with open(self.tally, "a") as file:  # noqa: PTH123
                file.write("x")
            if os.path.getsize(self.tally) <= self.deaths:  # noqa: PTH202
                os._exit(1)
        return Reconstruction(torch.zeros(1, 1, 8, 8), None, torch.zeros(1))


def outcomes(directory):
    return {outcome.cell: outcome for outcome in finished(RunLayout(directory))}


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The same captures audited on either executor."""
    place = tmp_path_factory.mktemp("runs")
    inline, pool = (run(load_scenario(SCENARIO), directory=place / name) for name in ("a", "b"))
    RunLayout(pool).cells.mkdir(parents=True)
    rows = audit(inline).rows
    # Candidates are batched as was fastest; the same way gives the same last digits.
    shutil.copy(RunLayout(inline).plans, RunLayout(pool).cells.parent)
    return inline, rows, pool, audit(pool, settings=Audit(executor="ray", actors=2)).rows


def test_actors_give_the_outcomes_of_this_process(audited):
    inline, rows, pool, theirs = audited
    # Four scores of the sample for each attack, four of the extraction as a whole, two of
    # the leakage budget of what was released.
    assert len(rows) == 2 * 3 * (2 * 4 + 4 + 2)
    assert [row["value"] for row in rows] == pytest.approx(
        [row["value"] for row in theirs], nan_ok=True, abs=0
    )
    for name, outcome in outcomes(inline).items():
        assert outcomes(pool)[name].status == outcome.status == "done"


@pytest.mark.parametrize(("deaths", "status"), [(1, "done"), (2, "failed")])
def test_a_cell_whose_worker_dies_is_tried_once_more(audited, tmp_path, deaths, status):
    from fedleak.auditor.observe import observe

    directory = audited[0]
    capture = CaptureStore(directory).load(1, "client-001")
    observation = observe(capture, subject_of_scenario(load_scenario(SCENARIO)))
    victim = round(float(observation.update["fc1.bias"].abs().sum()) * 1e6)
    attack = Deadly(victim=victim, deaths=deaths, tally=str(tmp_path / "tally"))
    before = outcomes(directory)
    told = []
    audit(
        directory,
        attacks=[attack],
        settings=Audit(executor="ray", actors=2),
        on_cell=lambda state: told.append((state.done, state.total)),
    )
    new = {name: o for name, o in outcomes(directory).items() if name not in before}
    assert len(new) == 6
    assert told == [(count, 6) for count in range(1, 7)]
    (hit,) = [o for o in new.values() if (o.round, o.client) == (1, "client-001")]
    assert hit.status == status
    assert (tmp_path / "tally").read_text() == "xx"
    if status == "failed":
        assert hit.reason.startswith("its worker died 2 times")
    assert all(o.status == "done" for o in new.values() if o is not hit)


def test_more_gpus_than_there_are_is_refused_before_anything_runs(audited):
    with pytest.raises(ResourceError, match=r"gpus_per_actor is 64, the Ray session has"):
        audit(
            audited[0],
            attacks=[Deadly(victim=0, deaths=0, tally="")],
            settings=Audit(executor="ray", gpus_per_actor=64),
        )


class Cluster:
    """Two GPUs and six CPUs; logical ones, as Ray books them where there are none."""

    @staticmethod
    def cluster_resources():
        return {"CPU": 6.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("asked", "gpus_per_actor", "size"),
    [(None, 0.5, 4), (None, 1.0, 2), (None, 2.0, 1), (3, 0.5, 3), (9, 0.25, 6), (None, 0.4, 4)],
)
def test_the_pool_fits_the_gpus(asked, gpus_per_actor, size):
    settings = Audit(executor="ray", actors=asked, gpus_per_actor=gpus_per_actor)
    gpus = executors._gpus_per_actor(Cluster, [], None, None, settings)
    assert gpus == gpus_per_actor
    assert executors._pool_size(Cluster, settings, gpus) == size


def asked_cells(directory):
    """What an audit of the scenario would run: two tasks on three clients in two rounds."""
    store, subject = CaptureStore(directory), subject_of_scenario(load_scenario(SCENARIO))
    return _plan(store, load_scenario(SCENARIO), subject), store, subject


def test_actors_share_a_gpu_as_memory_cpus_and_groups_allow(audited, monkeypatch):
    cells, store, subject = asked_cells(audited[0])
    assert len(cells) == 12
    need = actor_need([[cell] for cell in cells], store, subject)

    def share(memory, **settings):
        monkeypatch.setattr(executors, "_gpu_memory", lambda: memory)
        audit = Audit(executor="ray", **settings)
        return executors._gpus_per_actor(Cluster, cells, store, subject, audit)

    # Three updates of a round are one batch for the analytic attack's six groups and for
    # gs, on two GPUs, two a round: more groups than CPUs, of which there are three per GPU.
    assert share(100 * need) == 0.3333
    assert share(2.5 * need) == 0.5
    assert share(0.5 * need) == 1.0
    assert share(100 * need, actors=4) == 0.5
    assert share(100 * need, actors=1) == 1.0
    # Nobody can look there from here, or there is nothing to look at.
    assert share(100 * need, address="10.0.0.1:6379") == 1.0
    assert share(None) == 1.0


def test_actors_with_a_share_of_a_logical_gpu_run_side_by_side(audited, monkeypatch):
    """As many start as the share promises: a sum of shares above one GPU would wait forever."""
    import ray

    share = gpu_share(memory=100.0, need=1.0, gpus=1, most=6)
    seclude_ray()
    ray.init(address="local", num_cpus=6, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        cluster_size = executors._pool_size(ray, Audit(executor="ray"), share)
        assert cluster_size == 6
        actor = ray.remote(num_cpus=0, num_gpus=share)(Present)
        started = [actor.remote() for _ in range(cluster_size)]
        assert ray.get([one.here.remote() for one in started], timeout=120) == [True] * 6
    finally:
        ray.shutdown()


class Present:
    def here(self):
        return True
