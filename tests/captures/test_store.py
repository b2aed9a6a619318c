"""The capture store: whole rounds, verified files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedleak.captures import CaptureStore
from fedleak.errors import CaptureError, ResourceError
from fedleak.records import Capture, TrainingFacts, file_name, sum_name

FACTS = TrainingFacts(lr=0.1, steps=2, batch_size=4, examples=10)


def capture(client: str, round: int = 1, shift: float = 0.0) -> Capture:
    sent = {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array(3)}
    received = {name: array + np.asarray(shift, dtype=array.dtype) for name, array in sent.items()}
    return Capture(round, client, sent, received, FACTS)


@pytest.fixture
def store(tmp_path):
    store = CaptureStore(tmp_path / "run")
    store.commit(
        1,
        [capture("client-001", shift=1.0), capture("client-000", shift=2.0)],
        absent=["client-002"],
        rejected={"client-003": "fc.weight contains NaN or infinity"},
    )
    return store


def test_what_was_committed_is_read_back(store):
    loaded = store.load(1, "client-001")
    expected = capture("client-001", shift=1.0)
    assert store.rounds() == [1]
    assert store.clients(1) == ["client-000", "client-001"]
    assert loaded.facts == FACTS
    for side in ("sent", "received"):
        assert set(getattr(loaded, side)) == set(getattr(expected, side))
        for name, array in getattr(expected, side).items():
            np.testing.assert_array_equal(getattr(loaded, side)[name], array)
            assert getattr(loaded, side)[name].dtype == array.dtype
            assert getattr(loaded, side)[name].shape == array.shape


def test_the_manifest_names_absent_and_rejected_clients(store):
    record = json.loads(store.layout.manifest.read_text())["rounds"]["1"]
    assert record["absent"] == ["client-002"]
    assert record["rejected"] == {"client-003": "fc.weight contains NaN or infinity"}


def test_parameters_sent_to_several_clients_are_written_once(store):
    names = sorted(path.name for path in store.layout.round(1).iterdir())
    assert len([name for name in names if name.startswith("sent-")]) == 1
    assert len(names) == 3


def test_clients_that_were_sent_different_parameters_keep_their_own(tmp_path):
    store = CaptureStore(tmp_path)
    trap = Capture(1, "client-001", {"w": np.ones(3)}, {"w": np.zeros(3)}, None)
    honest = Capture(1, "client-000", {"w": np.zeros(3)}, {"w": np.zeros(3)}, None)
    store.commit(1, [trap, honest])
    np.testing.assert_array_equal(store.load(1, "client-001").sent["w"], np.ones(3))
    np.testing.assert_array_equal(store.load(1, "client-000").sent["w"], np.zeros(3))


def test_captures_are_private(store):
    for folder in (store.layout.root, store.layout.root / "captures"):
        assert folder.stat().st_mode & 0o077 == 0


def test_a_round_is_committed_once(store):
    with pytest.raises(ResourceError, match=r"round 1 .* append-only"):
        store.commit(1, [capture("client-000")])


@pytest.mark.parametrize("kind", ["received", "sent"])
def test_a_flipped_byte_is_found_and_the_file_named(store, kind):
    folder = store.layout.round(1)
    path = folder / "client-000.safetensors" if kind == "received" else next(folder.glob("sent-*"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=f"{path.name}.*altered"):
        store.load(1, "client-000")


def test_a_file_cut_short_is_found_and_named(store):
    path = store.layout.round(1) / "client-001.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CaptureError, match=r"client-001\.safetensors .*cut short"):
        store.load(1, "client-001")


def test_a_missing_file_is_named(store):
    (store.layout.round(1) / "client-001.safetensors").unlink()
    with pytest.raises(CaptureError, match=r"client-001\.safetensors: No such file"):
        store.load(1, "client-001")


def test_unknown_rounds_and_clients_are_refused(store):
    with pytest.raises(CaptureError, match=r"no round 7 \(committed: 1\)"):
        store.clients(7)
    with pytest.raises(CaptureError, match="no client-009 in round 1"):
        store.load(1, "client-009")


def test_a_round_that_was_not_committed_is_invisible_and_replaced(store):
    """A process killed before the manifest names a round leaves its folder behind."""
    for name in ("round-0002", "round-0002.partial"):
        leftover = store.layout.round(1).with_name(name)
        leftover.mkdir()
        (leftover / "client-000.safetensors").write_bytes(b"half of it")
    assert store.rounds() == [1]
    store.commit(2, [capture("client-004", round=2)])
    assert store.clients(2) == ["client-004"]
    store.load(2, "client-004")


def test_a_damaged_manifest_is_named(store):
    store.layout.manifest.write_text('{"format": 1, "rounds": {')
    with pytest.raises(CaptureError, match=r"manifest\.json cannot be read"):
        store.rounds()


def test_a_manifest_of_another_format_is_refused(store):
    store.layout.manifest.write_text('{"format": 99, "rounds": {}}')
    with pytest.raises(CaptureError, match="format 99; this FedLeak reads 1"):
        store.rounds()


def test_an_unwritable_place_is_named():
    with pytest.raises(ResourceError, match="cannot write /proc/fedleak"):
        CaptureStore("/proc/fedleak").commit(1, [capture("client-000")])


def test_a_sum_of_many_scattered_clients_has_a_name_that_files_can_bear(tmp_path):
    name = sum_name([f"client-{number:03d}" for number in range(0, 600, 2)])
    other = sum_name([f"client-{number:03d}" for number in range(0, 602, 2)])
    store = CaptureStore(tmp_path)
    store.commit(1, [capture(each) for each in (name, other)])
    assert store.clients(1) == sorted([name, other])
    assert store.load(1, name).client == name
    assert len({file_name(each) for each in (name, other)}) == 2
    assert file_name("client-007") == "client-007"
