from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fedleak.errors import CaptureError, ResourceError
from fedleak.reporting import write_page
from fedleak.reporting.wall import MOST_CARDS, MOST_UNSCORED, picture

if TYPE_CHECKING:
    from tests.reporting.conftest import RunBuilder

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """The parts of a page that the tests ask about; fails where tags do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cards: list[list[str]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "figure":
            self.cards[-1].append("|")
        if tag == "h3":
            self.cards.append([])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text = " ".join((self.text + " " + data).split())
        if "ul" in self.open and self.cards and data.strip():
            self.cards[-1].append(data.strip())
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


def pixels(image: dict[str, str | None]) -> npt.NDArray[np.uint8]:
    source = image["src"] or ""
    assert source.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def levels(sample: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    return np.rint(sample.astype(np.float32) * np.float32(255)).astype(np.uint8)


def test_the_headline_answers_and_the_page_names_the_run(leaky: Path) -> None:
    path = write_page(leaky)
    assert path == leaky / "report" / "index.html"
    page = Page(path)
    assert "1 of 2 audited samples were reconstructed" in page.text
    assert "at least one attack reached PSNR ≥ 20 dB" in page.text
    assert "1 failed, 1 unsupported" in page.text
    assert "tiny-20261120" in page.text and "started 2026-11-20 10:00:00" in page.text


def test_originals_stand_beside_reconstructions_pixel_for_pixel(leaky: Path) -> None:
    page = Page(write_page(leaky))
    first, second = np.random.default_rng(0).random((2, 28, 28))
    expected = [first, first * 0.9, second, 1 - second]
    images = page.images()
    assert len(images) == 4
    for image, array in zip(images, expected, strict=True):
        np.testing.assert_array_equal(pixels(image), levels(array))
        assert image["class"] == "pixelated"
        assert (image["width"], image["height"]) == ("112", "112")
    assert images[0]["alt"] == "original sample 0 of client-000, round 1"
    assert images[1]["alt"] == (
        "reconstruction by gs from client-000, round 1: PSNR 40.0 dB, SSIM 0.987, label 7 ✓"
    )
    leaked, safe = page.cards
    assert leaked[:2] == ["client-000 · round 1 · sample 0", "reconstructed"]
    assert leaked[2:9] == ["|", "original", "label 7", "|", "gs", "PSNR 40.0 dB", "SSIM 0.987"]
    assert safe[0] == "client-001 · round 1 · sample 0"
    assert "label 4 ✗ wrong" in safe and "reconstructed" not in safe
    assert sum(a.get("class") == "leaked" for tag, a in page.tags if tag == "figure") == 1


def test_reasons_stand_where_the_pictures_would(leaky: Path) -> None:
    leaked, safe = Page(write_page(leaky)).cards
    assert leaked[-3:] == ["|", "failed: the loss became NaN in step 12", "idlg"]
    assert safe[-3:] == ["|", "unsupported: the first layer is a convolution", "analytic"]


def test_tables_hold_cells_rounds_and_expectations(leaky: Path) -> None:
    rows = Page(write_page(leaky)).rows
    assert [
        "client-000",
        "1",
        "gs",
        "1 of 1",
        "1 of 1",
        "40.0",
        "40.0",
        "0.987",
        "yes",
        "3.1",
        "done",
    ] in rows
    assert [
        *("client-000", "1", "idlg", "–", "–", "–", "–", "–", "–", "3.1"),
        "failed: the loss became NaN in step 12",
    ] in rows
    assert [
        *("1", "40.0", "client-000, gs", "1 of 2", "0.4321", "1.25", "2", "client-004"),
        "client-005: update contains NaN in fc1.weight",
        "client-006: looks like a trap",
    ] in rows
    assert ["2", "–", "nothing scored", "–", "0.5678", "–", "1", "none", "none", "none"] in rows
    assert ["psnr", "gs", "≥ 20 ± 0.5", "31.25", "11.25", "yes", "Table 3"] in rows
    assert ["ssim", "idlg", "≥ 0.9", "–", "–", "no", "Figure 2"] in rows
    facts = "lr 0.1, steps 1, batch size 1, examples 5, train mode yes"
    assert ["client-000", "1–2", facts] in rows
    assert ["gs", "steps = 300"] in rows
    assert ["python", "3.11.9"] in rows


def test_the_page_needs_nothing_from_outside(leaky: Path) -> None:
    page = Page(write_page(leaky))
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.findall(r"[\w-]+://|url\(|@import", page.source)
    targets = {a["href"] for tag, a in page.tags if tag == "a"}
    assert targets <= {f"#{a['id']}" for _, a in page.tags if "id" in a}
    assert all(image["alt"] for image in page.images())


def test_what_comes_from_outside_is_escaped(builder: RunBuilder) -> None:
    evil = '<img src=x onerror="a">&'
    builder.scenario = f"name = '{evil}</pre><script>'"
    builder.environment["fedleak"] = evil
    builder.environment["machine"] = {evil: evil}
    builder.round(1, [evil], absent=[evil], rejected={evil: evil}, metrics={evil: 1.0})
    builder.originals(1, evil, np.zeros((1, 1, 4, 4)), [0])
    scores = [{"psnr": 30.0}]
    builder.cell(1, evil, "gs", inputs=np.zeros((1, 1, 4, 4)), labels=[0], scores=scores)
    builder.cell(1, evil, "idlg", status="failed", reason=evil)
    builder.expectations = [
        {"metric": evil, "comparison": evil, "value": 1, "measured": 1, "met": True, "source": evil}
    ]
    page = Page(write_page(builder.write()))
    assert len(page.images()) == 2
    assert {tag for tag, _ in page.tags} & {"script"} == set()
    assert page.images()[0]["alt"] == f"original sample 0 of {evil}, round 1"
    assert page.cards[0][0] == f"{evil} · round 1 · sample 0"
    assert f"name = '{evil}</pre><script>'" in page.text


def test_without_truth_it_says_so_and_shows_the_most_confident(builder: RunBuilder) -> None:
    builder.round(1, ["node-5"])
    made = np.linspace(0, 1, 10)[:, None, None, None] * np.ones((1, 3, 8, 8))
    builder.cell(
        1, "node-5", "gs", inputs=made, labels=range(10), confidence=[i / 10 for i in range(10)]
    )
    builder.scenario = None
    page = Page(write_page(builder.write()))
    assert "shown are the attacks' own reconstructions and confidence, not scores" in page.text
    assert "captured in another Flower app" in page.text
    images = page.images()
    assert len(images) == MOST_UNSCORED
    for rank, image in enumerate(images):
        np.testing.assert_array_equal(pixels(image), levels(made[9 - rank].transpose(1, 2, 0)))
    (card,) = page.cards
    assert card[:5] == ["node-5 · round 1", "|", "gs", "confidence 0.9", "label 9"]
    assert "2 more, less confident" in card
    assert "PSNR" not in " ".join(card)


def test_vectors_have_scores_and_no_pictures(builder: RunBuilder) -> None:
    builder.round(1, ["a"])
    builder.originals(1, "a", np.zeros((2, 30)), [0, 1])
    builder.cell(1, "a", "gs", inputs=np.zeros((2, 30)), scores=[{"psnr": 33.0}, {"psnr": 3.0}])
    page = Page(write_page(builder.write()))
    assert page.images() == []
    assert "2 samples of this run are no image" in page.text
    assert [
        "a",
        "1",
        "gs",
        "2 of 2",
        "1 of 2",
        "33.0",
        "18.0",
        "–",
        "–",
        "3.1",
        "done",
    ] in page.rows


def test_a_big_run_shows_the_worst_samples_and_says_so(builder: RunBuilder) -> None:
    size = MOST_CARDS + 15
    images = np.arange(size)[:, None, None, None] / 255 * np.ones((1, 1, 4, 4))
    order = np.random.default_rng(1).permutation(size)
    builder.round(1, ["a"])
    builder.originals(1, "a", images, [0] * size)
    builder.cell(
        1,
        "a",
        "gs",
        inputs=images[order],
        matches=np.argsort(order).tolist(),
        scores=[{"psnr": float(sample)} for sample in range(size)],
    )
    page = Page(write_page(builder.write()))
    assert f"Shown: the worst {MOST_CARDS} of {size}." in page.text
    values = [int(pixels(image)[0, 0]) for image in page.images()]
    expected = [sample for sample in range(size - 1, size - 1 - MOST_CARDS, -1) for _ in "ab"]
    assert values == expected


def test_a_sample_an_extraction_missed_and_one_no_attack_could_try(builder: RunBuilder) -> None:
    builder.round(1, ["a", "b"])
    builder.originals(1, "a", np.zeros((2, 1, 4, 4)), [0, 1])
    builder.cell(
        1,
        "a",
        "trap",
        inputs=np.zeros((1, 1, 4, 4)),
        scores=[{"psnr": 30.0}, {"psnr": float("nan")}],
        matches=[0, -1],
    )
    builder.originals(1, "b", np.ones((1, 1, 4, 4)), [5])
    builder.cell(1, "b", "trap", status="failed", reason="diverged")
    found, missed, failed = Page(write_page(builder.write())).cards
    assert "PSNR 30.0 dB" in found
    assert "not among what this attack found" in missed
    assert failed[0] == "b · round 1 · sample 0" and "failed: diverged" in failed


def test_two_settings_of_one_attack_are_told_apart(builder: RunBuilder) -> None:
    builder.round(1, ["a"])
    builder.originals(1, "a", np.zeros((1, 1, 4, 4)), [0])
    for name, steps in (("gs-1", 100), ("gs-2", 900)):
        cell = builder.cell(1, "a", name, inputs=np.zeros((1, 1, 4, 4)), scores=[{"psnr": 9.0}])
        path = builder.root / "audit" / "cells" / f"{cell}.json"
        record = json.loads(path.read_text())
        change = {"attack": "gs", "parameters": {"steps": steps, "lr": 0.1}}
        path.write_text(json.dumps({**record, **change}))
    page = Page(write_page(builder.write()))
    (card,) = page.cards
    assert card.count("gs steps=100") == 1 and card.count("gs steps=900") == 1
    assert ["gs", "steps = 100, lr = 0.1"] in page.rows
    assert ["gs", "steps = 900, lr = 0.1"] in page.rows


def test_scores_of_a_sample_that_is_not_there_are_an_error(builder: RunBuilder) -> None:
    builder.round(1, ["a"])
    builder.originals(1, "a", np.zeros((1, 1, 4, 4)), [0])
    images = np.zeros((2, 1, 4, 4))
    builder.cell(1, "a", "gs", inputs=images, scores=[{"psnr": 1.0}, {"psnr": 2.0}])
    with pytest.raises(CaptureError, match=r"round-0001\.a\.safetensors has no sample 1"):
        write_page(builder.write())


def test_a_page_is_replaced_whole(leaky: Path) -> None:
    path = write_page(leaky)
    path.write_text("old")
    assert write_page(leaky) == path
    assert path.read_text().startswith("<!doctype html>")
    assert [file.name for file in path.parent.iterdir()] == ["index.html"]


def test_a_place_that_cannot_be_written_is_named(leaky: Path) -> None:
    (leaky / "report").write_text("a file stands in the way")
    with pytest.raises(ResourceError, match="cannot write"):
        write_page(leaky)


@pytest.mark.parametrize(
    ("shape", "stored", "shown"),
    [
        ((3, 32, 32), (32, 32), (96, 96)),
        ((1, 28, 14), (14, 28), (56, 112)),
        ((3, 448, 224), (112, 224), (56, 112)),
        ((3, 64, 64), (64, 64), (64, 64)),
    ],
)
def test_pictures_keep_their_pixels_and_their_shape(
    shape: tuple[int, ...], stored: tuple[int, int], shown: tuple[int, int]
) -> None:
    made = picture(np.random.default_rng(0).random(shape).astype(np.float32))
    assert made is not None
    image = Image.open(io.BytesIO(base64.b64decode(made.source.partition(",")[2])))
    assert image.size == stored
    assert (made.width, made.height) == shown


def test_values_outside_the_pixel_range_are_clipped() -> None:
    made = picture(np.array([[[-1.0, 2.0], [np.nan, np.inf]]], np.float32))
    assert made is not None
    image = Image.open(io.BytesIO(base64.b64decode(made.source.partition(",")[2])))
    assert np.asarray(image).tolist() == [[0, 255], [0, 255]]
    assert picture(np.zeros((2, 4, 4), np.float32)) is None
    assert picture(np.zeros(30, np.float32)) is None
