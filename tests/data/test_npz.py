from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedleak.data.npz import Npz

GREY = np.arange(10 * 4 * 5, dtype=np.uint8).reshape(10, 4, 5)
LABELS = np.array([0, 1] * 5)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_train_and_test_arrays_with_attributes(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.npz",
        x_train=GREY,
        y_train=LABELS,
        x_test=GREY[:3],
        y_test=np.array([4, 0, 1]),
        writer_train=np.arange(10),
        writer_test=np.arange(3),
    )
    splits = Npz(path=path, attributes=("writer",)).load()
    assert np.array_equal(splits.train.inputs, GREY[:, None])
    assert splits.train.classes == splits.test.classes == 5
    assert splits.test.attributes["writer"].tolist() == [0, 1, 2]


def test_other_names_and_a_held_out_share(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=GREY, y=LABELS, writer=np.arange(10))
    source = Npz(path=path, x_train="x", y_train="y", attributes=("writer",), test_fraction=0.4)
    splits = source.load()
    # Sorted by class: 0 2 4 6 8 1 3 5 7 9; of these the places 1, 3, 6 and 8.
    assert splits.test.attributes["writer"].tolist() == [2, 3, 6, 7]
    assert np.array_equal(splits.test.inputs, GREY[[2, 3, 6, 7], None])
    assert len(splits.train) == 6


def test_a_scenario_with_all_defaults_written_out_loads_the_same(tmp_path: Path) -> None:
    source = Npz(path=save(tmp_path / "a.npz", x_train=GREY, y_train=LABELS))
    again = Npz.model_validate_json(source.model_dump_json(), strict=True)
    assert np.array_equal(source.load().test.inputs, again.load().test.inputs)


def test_a_missing_file(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "no.npz" in refused("data.path", Npz(path=tmp_path / "no.npz").load)


@pytest.mark.parametrize(
    ("arrays", "options", "path", "says"),
    [
        ({"y_train": LABELS}, {}, "data.x_train", "no array 'x_train', only y_train"),
        ({"x_train": GREY, "y_train": LABELS, "x_test": GREY}, {}, "data.y_test", "'y_test'"),
        ({"x_train": GREY, "y_train": LABELS}, {"x_test": "x_tset"}, "data.x_test", "'x_tset'"),
        (
            {"x_train": GREY, "y_train": LABELS, "writer": LABELS},
            {"attributes": ("writr",)},
            "data.attributes",
            "Did you mean 'writer'?",
        ),
        ({"x_train": GREY, "y_train": LABELS[:4]}, {}, "data.path", "10 inputs"),
        ({"x_train": GREY, "y_train": LABELS - 1}, {}, "data.path", "-1..0"),
        ({"x_train": GREY / 255.0 * np.nan, "y_train": LABELS}, {}, "data.path", "NaN"),
        ({"x_train": GREY.astype(float), "y_train": LABELS}, {}, "data.path", "[0, 199]"),
        (
            {"x_train": GREY[:1], "y_train": LABELS[:1]},
            {},
            "data.path",
            "at least 2",
        ),
        (
            {"x_train": np.array([None]), "y_train": LABELS},
            {},
            "data.path",
            "cannot be read",
        ),
    ],
)
def test_wrong_arrays(
    arrays: dict[str, np.ndarray],
    options: dict[str, object],
    path: str,
    says: str,
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    file = save(tmp_path / "a.npz", **arrays)
    if "x_test" in options:  # both are then expected: give the other one
        np.savez(file, **arrays, y_test=LABELS)
    assert says in refused(path, Npz(path=file, **options).load)


def test_a_single_array_and_a_cut_file(tmp_path: Path, refused: Callable[..., str]) -> None:
    np.save(tmp_path / "one.npy", GREY)
    assert "single array" in refused("data.path", Npz(path=tmp_path / "one.npy").load)
    whole = save(tmp_path / "a.npz", x_train=GREY, y_train=LABELS).read_bytes()
    for length in (0, 50, len(whole) - 30):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        assert "cut.npz" in refused("data.path", Npz(path=tmp_path / "cut.npz").load)


def test_a_flipped_byte(tmp_path: Path, refused: Callable[..., str]) -> None:
    file = save(tmp_path / "a.npz", x_train=GREY, y_train=LABELS)
    content = bytearray(file.read_bytes())
    place = content.find(GREY.tobytes()[:50])
    content[place + 10] ^= 1
    file.write_bytes(bytes(content))
    assert "cannot be read" in refused("data.path", Npz(path=file).load)


def test_real_cifar10(real_data: Path) -> None:
    file = real_data / "cifar10" / "cifar10_train10000_test2000.npz"
    splits = Npz(path=file).load()
    assert splits.train.inputs.shape == (10_000, 3, 32, 32)
    assert splits.test.inputs.shape == (2000, 3, 32, 32)
    assert splits.train.classes == 10
    with np.load(file) as raw:
        assert np.array_equal(splits.train.inputs[7, 2], raw["x_train"][7, :, :, 2])
        assert np.array_equal(splits.test.labels, raw["y_test"])


def test_real_digits_by_writer(real_data: Path) -> None:
    file = real_data / "femnist-digits" / "femnist_digits_12clients.npz"
    splits = Npz(path=file, x_train="x", y_train="y", attributes=("client",)).load()
    assert len(splits.train) + len(splits.test) == 5997
    assert np.unique(splits.train.attributes["client"]).tolist() == list(range(12))
