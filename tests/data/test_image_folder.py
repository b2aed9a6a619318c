from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedleak.data.image_folder import ImageFolder


def paint(file: Path, colour: tuple[int, int, int] = (10, 20, 30)) -> None:
    """A 4x4 image of one colour, stored without loss."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(file)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for number in range(4):
        paint(tmp_path / "cat" / f"{number}.png", (number, 0, 0))
        paint(tmp_path / "ant" / "deeper" / f"{number}.png", (100 + number, 0, 0))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    return tmp_path


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for name in ("a", "b", "c", "d"):
        paint(tmp_path / "images" / f"{name}.png")
    rows = ["file,person,gender", "d.png,p4,f", "c.png,p3,m", "b.png,p2,f", "a.png,p1,m"]
    (tmp_path / "table.csv").write_text("\n".join([*rows, "other.png,p9,x"]))
    return tmp_path


def test_folders_are_classes_in_sorted_order(folders: Path) -> None:
    splits = ImageFolder(path=folders, size=(4, 4), test_fraction=0.25).load()
    assert splits.train.classes == 2
    # Files in sorted order: ant/deeper/0..3, cat/0..3; of each four the third is held out.
    assert splits.train.inputs[:, 0, 0, 0].tolist() == [100, 101, 103, 0, 1, 3]
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.test.inputs[:, 0, 0, 0].tolist() == [102, 2]
    assert splits.train.inputs.shape == (6, 3, 4, 4)
    assert splits.train.inputs.dtype == np.uint8


def test_samples_lie_in_memory_as_their_shape_says(folders: Path) -> None:
    train = ImageFolder(path=folders, size=(4, 4)).load().train
    assert train.samples(np.array([2, 0])).flags.c_contiguous


def test_same_classes_as_torchvision(folders: Path) -> None:
    from torchvision.datasets import ImageFolder as Reference

    reference = Reference(str(folders))
    splits = ImageFolder(path=folders, size=(4, 4)).load()
    theirs = {np.asarray(image)[0, 0, 0]: label for image, label in reference}
    for part in (splits.train, splits.test):
        assert [theirs[i[0, 0, 0]] for i in part.inputs] == part.labels.tolist()


def test_a_file_name_tells_the_class(tmp_path: Path, refused: Callable[..., str]) -> None:
    for number, name in enumerate(("n7_cat 1", "n3_ant", "n7_cat 2", "n3_ant 2")):
        paint(tmp_path / f"{name}.png", (number, 0, 0))
    splits = ImageFolder(path=tmp_path, size=(4, 4), pattern=r"(n\d+)_", test_fraction=0.5).load()
    told = {
        int(image[0, 0, 0]): int(label)
        for part in (splits.train, splits.test)
        for image, label in zip(part.inputs, part.labels, strict=True)
    }
    assert told == {0: 1, 1: 0, 2: 1, 3: 0}
    paint(tmp_path / "other.png")
    message = refused("data.pattern", ImageFolder(path=tmp_path, size=(4, 4), pattern="(n.)_").load)
    assert "'other.png'" in message


@pytest.mark.parametrize(("pattern", "says"), [("n", "no group"), ("(n", "no regular expression")])
def test_a_pattern_that_can_find_no_class(pattern: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ImageFolder(path=Path(), size=(4, 4), pattern=pattern)


def test_a_column_is_the_class(flat: Path) -> None:
    splits = ImageFolder(
        path=flat / "images",
        size=(4, 4),
        attributes=flat / "table.csv",
        label="gender",
        test_fraction=0.5,
    ).load()
    people = [*splits.train.attributes["person"], *splits.test.attributes["person"]]
    labels = [*splits.train.labels, *splits.test.labels]
    # Classes in sorted order: f is 0, m is 1.
    assert dict(zip(people, labels, strict=True)) == {"p1": 1, "p2": 0, "p3": 1, "p4": 0}
    assert sorted(splits.test.labels.tolist()) == [0, 1]


def test_scaling_keeps_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, :10] = (255, 0, 0)
    wide[:, 10:20] = (0, 0, 255)
    wide[:, 20:] = (255, 0, 0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(wide).save(tmp_path / name / "x.png")
    image = ImageFolder(path=tmp_path, size=(10, 10)).load().train.inputs[0]
    assert np.array_equal(image[0], np.zeros((10, 10)))
    assert np.array_equal(image[2], np.full((10, 10), 255))
    halved = ImageFolder(path=tmp_path, size=(5, 15)).load().train.inputs[0]
    assert halved.shape == (3, 5, 15)
    assert halved[0, :, :4].min() == 255  # red on the left, blue in the middle
    assert halved[2, :, 6:9].min() == 255


def test_greyscale(folders: Path) -> None:
    image = ImageFolder(path=folders, size=(2, 3), channels=1).load().train.inputs[0]
    assert image.shape == (1, 2, 3)
    assert np.abs(image - 0.299 * 100).max() <= 1  # ITU-R 601 luma of (100, 0, 0)


def test_no_directory_and_no_images(tmp_path: Path, refused: Callable[..., str]) -> None:
    missing = ImageFolder(path=tmp_path / "nowhere", size=(4, 4))
    assert "nowhere" in refused("data.path", missing.load)
    assert ".png" in refused("data.path", ImageFolder(path=tmp_path, size=(4, 4)).load)


def test_flat_images_without_a_label_column(flat: Path, refused: Callable[..., str]) -> None:
    message = refused("data.pattern", ImageFolder(path=flat / "images", size=(4, 4)).load)
    assert "'a.png'" in message
    assert "data.label" in message


def test_an_unknown_label_column(flat: Path, refused: Callable[..., str]) -> None:
    source = ImageFolder(
        path=flat / "images", size=(4, 4), attributes=flat / "table.csv", label="gendr"
    )
    assert "Did you mean 'gender'?" in refused("data.label", source.load)
    alone = ImageFolder(path=flat / "images", size=(4, 4), label="gender")
    assert "data.attributes" in refused("data.label", alone.load)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,gender\na.png,m\nb.png,f\nc.png,m\n", ["'d.png'", "'gender'"]),
        ("file,gender\na.png,m\nb.png,\nc.png,m\nd.png,m\n", ["'b.png'", "'gender'"]),
        ("file,gender\na.png,m\nb.png\nc.png,m\nd.png,m\n", ["'b.png'", "'gender'"]),
        ("name,gender\na.png,m\n", ["name, gender", "'file'"]),
        ("file\na.png\n", ["at least one attribute"]),
        ("", ["(none)"]),
    ],
)
def test_a_bad_table(text: str, says: list[str], flat: Path, refused: Callable[..., str]) -> None:
    (flat / "bad.csv").write_text(text)
    source = ImageFolder(
        path=flat / "images", size=(4, 4), attributes=flat / "bad.csv", label="gender"
    )
    message = refused("data.attributes", source.load)
    assert all(part in message for part in says)


def test_a_missing_table(flat: Path, refused: Callable[..., str]) -> None:
    source = ImageFolder(path=flat / "images", size=(4, 4), attributes=flat / "no.csv")
    assert "no.csv" in refused("data.attributes", source.load)


def test_a_damaged_image_is_named(folders: Path, refused: Callable[..., str]) -> None:
    file = folders / "cat" / "1.png"
    file.write_bytes(file.read_bytes()[:40])
    assert "'cat/1.png'" in refused("data.path", ImageFolder(path=folders, size=(4, 4)).load)
    file.write_bytes(b"not an image")
    assert "'cat/1.png'" in refused("data.path", ImageFolder(path=folders, size=(4, 4)).load)


def test_real_faces(real_data: Path) -> None:
    lfw = real_data / "lfw"
    splits = ImageFolder(
        path=lfw / "images", size=(32, 32), attributes=lfw / "labels.csv", label="gender"
    ).load()
    assert np.bincount(splits.train.labels).tolist() == [360, 360]
    assert np.bincount(splits.test.labels).tolist() == [90, 90]
    genders = splits.train.attributes["gender"]
    assert np.array_equal(genders == "male", splits.train.labels == 1)
    assert splits.train.inputs.std() > 40  # photos, not blanks


def test_real_photos_need_classes(real_data: Path, refused: Callable[..., str]) -> None:
    source = ImageFolder(path=real_data / "imagenet-samples" / "images", size=(64, 64))
    assert "no class" in refused("data.pattern", source.load)


def test_real_photos_by_name(real_data: Path) -> None:
    images = real_data / "imagenet-samples" / "images"
    names = sorted(file.name for file in images.iterdir())
    splits = ImageFolder(path=images, size=(224, 224), pattern="(n[0-9]+)_").load()
    assert splits.train.classes == 109
    assert len(splits.train) + len(splits.test) == 109
    # An independent way to the same picture: crop to whole pixels, then scale.
    label = int(splits.train.labels[0])
    with Image.open(images / names[label]) as opened:
        photo = opened.convert("RGB")
    side = min(photo.size)
    left, top = ((length - side) // 2 for length in photo.size)
    square = photo.crop((left, top, left + side, top + side)).resize((224, 224), Image.BILINEAR)
    difference = np.asarray(square, float).transpose(2, 0, 1) - splits.train.inputs[0]
    assert np.abs(difference).mean() < 3


def test_only_the_middle_is_used(tmp_path: Path, refused: Callable[..., str]) -> None:
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[5:15, 11:19] = 90
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "one.png")
    splits = ImageFolder(path=tmp_path, size=(5, 4), crop=(10, 8)).load()
    assert np.unique(splits.train.inputs).tolist() == [90]
    wider = ImageFolder(path=tmp_path, size=(5, 4), crop=(10, 31))
    assert "has 20x30 pixels" in refused("data.crop", wider.load)


def test_faces(real_data: Path) -> None:
    folder = real_data / "lfw"
    splits = ImageFolder(
        path=folder / "images",
        attributes=folder / "labels.csv",
        label="gender",
        size=(62, 47),
        crop=(125, 94),
    ).load()
    assert splits.train.inputs.shape == (720, 3, 62, 47)
    assert np.bincount(splits.test.labels).tolist() == [90, 90]
    assert len(np.unique(splits.train.attributes["identity"])) == 720
