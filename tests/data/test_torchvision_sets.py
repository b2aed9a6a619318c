from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from fedleak.data.torchvision_sets import (
    CelebA,
    Cifar10,
    Cifar100,
    FashionMnist,
    Lfw,
    Mnist,
    TorchvisionSet,
)
from fedleak.errors import ScenarioError

SETS = (Mnist, FashionMnist, Cifar10, Cifar100)


def write_idx(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    """The format of MNIST's files: magic number, sizes, bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">4i", 0x803, *images.shape)
    (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    header = struct.pack(">2i", 0x801, len(labels))
    (folder / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


@pytest.mark.parametrize(("source", "folder"), [(Mnist, "MNIST"), (FashionMnist, "FashionMNIST")])
def test_idx_files(source: type[TorchvisionSet], folder: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = np.array([3, 1, 4, 1, 9], dtype=np.uint8)
    write_idx(tmp_path / folder / "raw", "train", images, labels)
    write_idx(tmp_path / folder / "raw", "t10k", images[:2], labels[:2])
    splits = source(root=tmp_path).load()
    assert np.array_equal(splits.train.inputs, images[:, None])
    assert splits.train.labels.tolist() == [3, 1, 4, 1, 9]
    assert splits.train.labels.dtype == np.int64
    assert splits.train.classes == splits.test.classes == 10
    assert np.array_equal(splits.test.inputs, images[:2, None])


@pytest.mark.parametrize(
    ("source", "name", "folder", "key", "classes"),
    [
        (Cifar10, "CIFAR10", "cifar-10-batches-py", "labels", 10),
        (Cifar100, "CIFAR100", "cifar-100-python", "fine_labels", 100),
    ],
)
def test_cifar_files(
    source: type[TorchvisionSet],
    name: str,
    folder: str,
    key: str,
    classes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (4, 3 * 32 * 32), dtype=np.uint8)
    (tmp_path / folder).mkdir()

    def write(file: str, content: object) -> list[str]:
        text = pickle.dumps(content)
        (tmp_path / folder / file).write_bytes(text)
        return [file, hashlib.md5(text).hexdigest()]

    cifar = getattr(datasets, name)
    part = {"data": rows, key: [classes - 1, 0, 5, 2]}
    monkeypatch.setattr(cifar, "train_list", [write("one", part)])
    monkeypatch.setattr(cifar, "test_list", [write("two", part)])
    file, checksum = write("meta", {cifar.meta["key"]: ["a name"]})
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"filename": file, "md5": checksum})
    splits = source(root=tmp_path).load()
    assert np.array_equal(splits.train.inputs, rows.reshape(4, 3, 32, 32))
    assert splits.test.labels.tolist() == [classes - 1, 0, 5, 2]
    assert splits.test.classes == classes


@pytest.mark.parametrize("source", SETS)
def test_a_missing_set_names_the_directory_and_the_remedy(
    source: type[TorchvisionSet], tmp_path: Path, refused: Callable[..., str]
) -> None:
    message = refused("data.root", source(root=tmp_path / "nowhere").load)
    assert str(tmp_path / "nowhere") in message
    assert "download = true" in message
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("damage", [lambda x: x[:-100], lambda x: b"", lambda x: b"GIF89a" + x])
def test_a_damaged_set_is_an_error_too(
    damage: Callable[[bytes], bytes], tmp_path: Path, refused: Callable[..., str]
) -> None:
    images = np.zeros((5, 28, 28), np.uint8)
    write_idx(tmp_path / "MNIST" / "raw", "train", images, np.zeros(5, np.uint8))
    write_idx(tmp_path / "MNIST" / "raw", "t10k", images, np.zeros(5, np.uint8))
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    assert "no usable MNIST" in refused("data.root", Mnist(root=tmp_path).load)


def test_a_failed_download_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody answers
    assert "MNIST" in refused("data.download", Mnist(root=tmp_path, download=True).load)


def test_real_mnist(real_data: Path) -> None:
    splits = Mnist(root=real_data / "mnist").load()
    assert splits.train.inputs.shape == (60_000, 1, 28, 28)
    assert splits.test.inputs.shape == (10_000, 1, 28, 28)
    # The published count of each digit, and the first labels of both files.
    assert np.bincount(splits.train.labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert splits.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert splits.test.labels[:5].tolist() == [7, 2, 1, 0, 4]


def write_writers(path: Path, rows: list[list[int]]) -> None:
    table = np.array(rows, ">i4")
    path.write_bytes(gzip.compress(struct.pack(">3i", 0xC02, *table.shape) + table.tobytes()))


def test_writers_are_added_where_the_digits_are_the_same(tmp_path: Path) -> None:
    images = np.zeros((2, 28, 28), dtype=np.uint8)
    for name in ("train", "t10k"):
        write_idx(tmp_path / "MNIST" / "raw", name, images, np.array([3, 1], dtype=np.uint8))
    rows = [[3, 4, 2099, 0, 0, 0, 0, 0], [1, 0, 539, 1, 0, 0, 0, 0], [7, 0, 1, 2, 0, 0, 0, 0]]
    for part in ("train", "test"):
        write_writers(tmp_path / f"qmnist-{part}-labels-idx2-int.gz", rows)
    source = Mnist(root=tmp_path, writers=tmp_path)
    for dataset in (source.load().train, source.load().test):
        assert dataset.attributes["writer"].tolist() == [2099, 539]
        assert dataset.attributes["series"].tolist() == [4, 0]
    write_writers(tmp_path / "qmnist-test-labels-idx2-int.gz", rows[::-1])
    with pytest.raises(ScenarioError, match="the classes differ"):
        source.load()
    (tmp_path / "qmnist-test-labels-idx2-int.gz").write_bytes(b"no archive")
    with pytest.raises(ScenarioError, match="cannot be read"):
        source.load()
    with pytest.raises(ScenarioError, match="there is no file"):
        Mnist(root=tmp_path, writers=tmp_path / "nowhere").load()


def test_who_wrote_mnist(real_data: Path) -> None:
    source = Mnist(root=real_data / "mnist", writers=real_data / "qmnist-writers")
    train = source.load().train
    assert len(np.unique(train.attributes["writer"])) == 539
    # A private attribute: the population of the writers, which the class does not tell.
    assert np.unique(train.attributes["series"]).tolist() == [0, 4]


def write_image(path: Path, value: int, height: int = 250, width: int = 250) -> None:
    """Grey ``value``, with a white frame outside the middle 125x94 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    top, left = (height - 125) // 2, (width - 94) // 2
    pixels[top : top + 125, left : left + 94] = value
    Image.fromarray(pixels).save(path)


@pytest.fixture
def lfw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five images of three people, in torchvision's layout."""
    folder = tmp_path / "lfw-py"
    people = {"Ann_B": 2, "Carl_D": 1, "Eve_F": 2}
    for person, (name, count) in enumerate(people.items()):
        for number in range(1, count + 1):
            file = folder / "lfw_funneled" / name / f"{name}_{number:04d}.jpg"
            write_image(file, 50 * person + number)
    (folder / "lfw-names.txt").write_text("".join(f"{n}\t{c}\n" for n, c in people.items()))
    folds = [list(people.items())[:2], list(people.items())[2:]]
    lines = ["2"]
    for fold in folds:
        lines += [str(len(fold)), *(f"{name}\t{count}" for name, count in fold)]
    (folder / "people.txt").write_text("\n".join(lines) + "\n")
    # The archive and the checksums of the real files are all that is missing.
    monkeypatch.setattr(
        datasets.LFWPeople, "_check_integrity", lambda self: Path(self.root, "people.txt").exists()
    )
    return tmp_path


def test_lfw_people(lfw: Path, refused: Callable[..., str]) -> None:
    splits = Lfw(root=lfw).load()
    assert splits.train.inputs.shape[1:] == (3, 62, 47) and splits.train.classes == 3
    parts = (splits.train, splits.test)
    assert sum(map(len, parts)) == 5
    found = [
        (str(name), int(label), round(float(image.mean())))
        for part in parts
        for name, label, image in zip(
            part.attributes["identity"], part.labels, part.inputs, strict=True
        )
    ]
    # The frame is cropped away: each image is one grey.
    assert sorted(found) == [
        ("Ann_B", 0, 1), ("Ann_B", 0, 2), ("Carl_D", 1, 51), ("Eve_F", 2, 101), ("Eve_F", 2, 102),
    ]  # fmt: skip
    table = lfw / "table.csv"
    files = [f"{n}/{n}_{i:04d}.jpg" for n, i in [("Ann_B", 1), ("Ann_B", 2), ("Eve_F", 1)]]
    rows = [f"{file},f" for file in files] + ["Carl_D/Carl_D_0001.jpg,m", "Eve_F/Eve_F_0002.jpg,f"]
    table.write_text("\n".join(["file,gender", *rows]))
    splits = Lfw(root=lfw, attributes=table, label="gender").load()
    genders = np.concatenate([part.attributes["gender"] for part in (splits.train, splits.test)])
    labels = np.concatenate([splits.train.labels, splits.test.labels])
    assert splits.train.classes == 2 and sorted(genders.tolist()) == ["f"] * 4 + ["m"]
    assert np.array_equal(labels == 1, genders == "m")
    table.write_text("\n".join(["file,gender", *rows[:-1]]))
    message = refused("data.attributes", Lfw(root=lfw, attributes=table).load)
    assert "no value for file 'Eve_F/Eve_F_0002.jpg'" in message
    assert "only identity" in refused("data.label", Lfw(root=lfw, label="age").load)
    message = refused("data.root", Lfw(root=lfw / "nowhere").load)
    assert "no usable LFWPeople" in message and "download" not in message


def test_celeba(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    folder = tmp_path / "celeba"
    files = [f"{number:06d}.jpg" for number in range(1, 7)]
    for number, file in enumerate(files):
        write_image(folder / "img_align_celeba" / file, 10 * number, 218, 178)

    def write(name: str, rows: list[list[int]], header: str = "") -> None:
        lines = [" ".join(map(str, (file, *row))) for file, row in zip(files, rows, strict=True)]
        (folder / name).write_text(header + "\n".join(lines) + "\n")

    male, smiling = [1, -1, 1, -1, 1, -1], [1, 1, 1, -1, -1, -1]
    write("list_eval_partition.txt", [[0], [0], [1], [1], [2], [2]])
    write("identity_CelebA.txt", [[2880], [5], [5], [7], [8], [9]])
    # Names end in a blank, as in the real file.
    pairs = [list(pair) for pair in zip(male, smiling, strict=True)]
    write("list_attr_celeba.txt", pairs, "6\nMale Smiling \n")
    for name in ("list_bbox_celeba.txt", "list_landmarks_align_celeba.txt"):
        write(name, [[0, 0]] * 6, "6\na b\n")
    monkeypatch.setattr(
        datasets.CelebA, "_check_integrity", lambda self: Path(self.root, "celeba").is_dir()
    )
    source = CelebA(root=tmp_path, label="Smiling", samples=5, crop=(125, 94), test_fraction=0.4)
    splits = source.load()
    parts = (splits.train, splits.test)
    assert [len(part) for part in parts] == [3, 2] and splits.train.classes == 2
    assert splits.train.inputs.shape[1:] == (3, 64, 64)
    found = sorted(
        (round(float(image.mean())), int(label), int(part.attributes["Male"][row]))
        for part in parts
        for row, (label, image) in enumerate(zip(part.labels, part.inputs, strict=True))
    )
    assert found == [(0, 1, 1), (10, 1, 0), (20, 1, 1), (30, 0, 0), (40, 0, 1)]
    assert sorted(splits.train.attributes) == ["Male", "Smiling", "identity"]
    message = refused("data.label", CelebA(root=tmp_path, label="Smilng").load)
    assert "Did you mean 'Smiling'?" in message
    missing = CelebA(root=tmp_path / "nowhere", label="Male")
    assert "download = true" in refused("data.root", missing.load)
    write_image(folder / "img_align_celeba" / files[1], 0, 124, 178)
    assert files[1] in refused("data.crop", source.load)
    (folder / "img_align_celeba" / files[1]).write_bytes(b"no image")
    assert files[1] in refused("data.root", source.load)
