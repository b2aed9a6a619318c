"""The picture wall: true samples beside what each attack made of them."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from fedleak.errors import CaptureError
from fedleak.reporting import text
from fedleak.reporting.results import Cell, Pictures, Results, SampleScores

MOST_CARDS = 60
MOST_UNSCORED = 8
_WORDS = 60
_SHOWN_SIDE = 112
_STORED_SIDE = 224


Sample = npt.NDArray[np.float32] | npt.NDArray[np.int64]


@dataclass(frozen=True)
class Picture:
    """An image as it stands in the page: a PNG data URI and its size in CSS pixels.

    Attributes:
        pixelated: Whether it is shown enlarged, so that its pixels should stay sharp.
    """

    source: str
    width: int
    height: int
    pixelated: bool


@dataclass(frozen=True)
class Word:
    """A word of a text, and whether the original has it at this place."""

    text: str
    right: bool = True


@dataclass(frozen=True)
class Tile:
    """One place on a card: a picture, a passage, or the note that stands where none can be.

    Attributes:
        title: ``original`` or the attack.
        picture: None where there is nothing to show; ``note`` then says why.
        alt: The picture in words.
        passage: The beginning of a text, in the place of a picture.
        lines: Scores under the picture.
        leaked: Whether this reconstruction reached the threshold.
    """

    title: str
    picture: Picture | None
    alt: str = ""
    note: str = ""
    lines: tuple[str, ...] = ()
    leaked: bool = False
    passage: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Card:
    """One true sample, or one capture without truth, with all attacks on it."""

    client: str
    round: int
    sample: int | None
    tiles: tuple[Tile, ...]

    @property
    def leaked(self) -> bool:
        """Whether any attack reconstructed the sample."""
        return any(tile.leaked for tile in self.tiles)


@dataclass(frozen=True)
class Wall:
    """The cards shown, worst leaks first, out of ``total``.

    Attributes:
        vectors: Cards left out because their samples are no images.
    """

    cards: tuple[Card, ...]
    total: int
    vectors: int


def build_wall(results: Results) -> Wall:
    """Choose the samples that leaked most, at most `MOST_CARDS`, and make their pictures.

    Samples that no attack could be scored on follow, then captures without truth.

    Raises:
        CaptureError: A file of pictures is missing or damaged; the message names it.
    """
    places: list[tuple[float, int, str, int | None]] = []
    groups: dict[tuple[int, str], list[Cell]] = {}
    for (number, client), group in groupby(results.cells, lambda c: (c.round, c.client)):
        # Reconstructions stand next to the original, reasons for having none after them.
        cells = groups[number, client] = sorted(group, key=lambda cell: cell.status != "done")
        for sample, leak in _samples(results, number, client, cells).items():
            places.append((-leak, number, client, sample))
    shown: list[Card] = []
    vectors = 0
    for _, number, client, sample in sorted(places, key=lambda p: (p[:3], p[3] or 0))[:MOST_CARDS]:
        card = card_of(results, number, client, sample, groups[number, client])
        if card is None:
            vectors += 1
        else:
            shown.append(card)
    return Wall(tuple(shown), len(places), vectors)


def picture(sample: Sample) -> Picture | None:
    """Make a picture of one sample, ``(C, H, W)`` in [0, 1] with one or three channels.

    Values outside are clipped and NaN is black. Sides above 224 pixels are scaled down;
    smaller images keep every pixel and the page scales them up by a whole factor.

    Returns:
        None where the sample is no such image.
    """
    from PIL import Image

    if sample.ndim != 3 or sample.shape[0] not in (1, 3) or 0 in sample.shape:
        return None
    pixels = np.nan_to_num(sample.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    levels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    image = Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
    image.thumbnail((_STORED_SIDE, _STORED_SIDE))
    file = io.BytesIO()
    image.save(file, "png", optimize=True)
    side = max(image.size)
    factor = _SHOWN_SIDE // side if side <= _SHOWN_SIDE else _SHOWN_SIDE / side
    return Picture(
        source="data:image/png;base64," + base64.b64encode(file.getvalue()).decode(),
        width=round(image.width * factor),
        height=round(image.height * factor),
        pixelated=factor > 1,
    )


def _samples(
    results: Results, number: int, client: str, cells: Sequence[Cell]
) -> dict[int | None, float]:
    """The largest leak by true sample; without scores -inf, without truth a single None."""
    best: dict[int | None, float] = {}
    for cell in cells:
        for index, score in results.samples(cell).items():
            best[index] = max(best.get(index, -math.inf), score.leak)
    if best:
        return best
    originals = results.originals(number, client)
    if originals is None:
        return {None: -math.inf}
    return dict.fromkeys(range(len(originals.inputs)), -math.inf)


def card_of(
    results: Results, number: int, client: str, sample: int | None, cells: Sequence[Cell]
) -> Card | None:
    """The card of one sample, or None where it holds vectors, which have no picture.

    Args:
        results: The run's.
        number: The round.
        client: The client's name.
        sample: Index of the true sample; None where there is no truth.
        cells: The attacks on that client in that round.

    Raises:
        CaptureError: A file of pictures is missing or damaged; the message names it.
    """
    tiles: list[Tile] = []
    truth_label: int | None = None
    originals = None if sample is None else results.originals(number, client)
    if sample is not None and originals is not None:
        if sample >= len(originals.inputs):
            raise CaptureError(
                f"{results.layout.original(number, client)} has no sample {sample}, "
                f"but {results.layout.results} scores one"
            )
        truth_label = _label(originals, sample)
        image = picture(originals.inputs[sample])
        passage = _passage(results, originals.inputs[sample])
        if image is None and not passage:
            return None
        words = f"original sample {sample} of {client}, round {number}"
        lines = () if truth_label is None else (f"label {truth_label}",)
        tiles.append(Tile("original", image, words, lines=lines, passage=passage))
    for cell in cells:
        name = f"{cell.task} {results.settings(cell)}".strip()
        if cell.status != "done":
            note = f"{cell.status}: {text.one_line(cell.reason)}"
            tiles.append(Tile(name, None, note=note))
            continue
        made = results.reconstructions(cell)
        if made.inputs.ndim != 4 and not results.of_texts:
            return None
        score = results.samples(cell).get(sample) if sample is not None else None
        if score is None:
            tiles += _unscored(name, cell, made, results)
        else:
            original = None if originals is None else originals.inputs[sample]
            tiles.append(_scored(name, cell, made, score, truth_label, original, results))
    return Card(client, number, sample, tuple(tiles))


def _scored(
    name: str,
    cell: Cell,
    made: Pictures,
    score: SampleScores,
    truth_label: int | None,
    original: Sample | None,
    results: Results,
) -> Tile:
    if not 0 <= score.match < len(made.inputs):
        return Tile(name, None, note="not among what this attack found")
    if results.of_texts:
        lines = [f"{text.percent(score.values.get('token-accuracy'))} of tokens right"]
    else:
        lines = [f"PSNR {text.decibel(score.values.get('psnr'))} dB"]
    if "ssim" in score.values:
        lines.append(f"SSIM {text.ratio(score.values['ssim'])}")
    label = _label(made, score.match)
    if label is not None and truth_label is not None:
        lines.append(f"label {label} " + ("✓" if label == truth_label else "✗ wrong"))
    return Tile(
        title=name,
        picture=picture(made.inputs[score.match]),
        alt=f"reconstruction by {name} from {cell.client}, round {cell.round}: {', '.join(lines)}",
        note="no picture can be made of these values",
        lines=tuple(lines),
        leaked=score.reconstructed,
        passage=_passage(results, made.inputs[score.match], original),
    )


def _unscored(name: str, cell: Cell, made: Pictures, results: Results) -> list[Tile]:
    """The attack's own favourites, by falling confidence."""
    confidence = made.confidence if made.confidence is not None else np.zeros(len(made.inputs))
    order = np.argsort(-confidence, kind="stable")
    tiles = []
    for index in order[:MOST_UNSCORED]:
        lines = [] if made.confidence is None else [f"confidence {confidence[index]:.3g}"]
        if (label := _label(made, int(index))) is not None:
            lines.append(f"label {label}")
        words = f"unscored reconstruction by {name} from {cell.client}, round {cell.round}"
        image = picture(made.inputs[index])
        note = "no picture can be made of these values"
        passage = _passage(results, made.inputs[index])
        tiles.append(Tile(name, image, words, note, tuple(lines), passage=passage))
    if len(order) > MOST_UNSCORED:
        tiles.append(Tile(name, None, note=f"{len(order) - MOST_UNSCORED:,} more, less confident"))
    return tiles


def _passage(results: Results, tokens: Sample, original: Sample | None = None) -> tuple[Word, ...]:
    """The beginning of a text in words; nothing for samples that are no texts."""
    if not results.of_texts:
        return ()
    end = len(tokens)
    while end and tokens[end - 1] == 0:  # padding
        end -= 1
    shown = min(end, _WORDS)
    rights = [True] * shown if original is None else (tokens == original)[:shown].tolist()
    words = [
        Word(results.vocabulary[token] if 0 <= token < len(results.vocabulary) else "?", right)
        for token, right in zip(tokens[:shown].tolist(), rights, strict=True)
    ]
    return (*words, Word("…")) if end > shown else tuple(words) or (Word("(empty)"),)


def _label(pictures: Pictures, index: int) -> int | None:
    return None if pictures.labels is None else int(pictures.labels[index])
