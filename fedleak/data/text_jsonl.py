"""Texts from JSON lines, as tokens of a vocabulary."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedleak.data.arrays import as_labels, checked, count_classes, hold_out
from fedleak.data.source import Source
from fedleak.errors import Problem, ScenarioError, nearest
from fedleak.records import Dataset, DataSplits

PADDING, UNKNOWN = "<padding>", "<unknown>"
"""Words of the tokens 0 and 1."""

_WORDS = "words"
"""The attribute that every text has, its length."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_MARKUP = re.compile(r"<[^<>]*>")


@dataclass(frozen=True)
class _Texts:
    """The columns of one file, each with a value per line."""

    words: list[list[str]]
    labels: list[Any]
    attributes: dict[str, list[Any]]


class TextJsonl(Source):
    """Labelled texts, one JSON object a line, as tokens.

    A text is lower-cased, freed of markup, and cut into words of letters and digits. The
    vocabulary is the most frequent words of the training texts, those of equal frequency
    in alphabetical order, after padding (token 0) and unknown words (token 1). A text has
    its first ``length`` words, or padding behind them. Files that end in ``.gz`` are
    unpacked. Labels are integers from 0. Without a test file, ``test_fraction`` of the
    texts is held out as `Npz` does.
    """

    kind: Literal["text-jsonl"] = "text-jsonl"
    train: Path = Field(description="the .jsonl or .jsonl.gz file with the training texts")
    test: Path | None = Field(None, description="the file with the test texts")
    text: str = Field("text", description="key of a line's text")
    label: str = Field("label", description="key of its label")
    attributes: tuple[str, ...] = Field(
        (),
        description="further keys with one value per text, for example a rating; 'words', where "
        "lines have no such key, is the number of words of the whole text",
    )
    length: int = Field(250, ge=1, le=100_000, description="tokens of a text")
    vocabulary: int = Field(
        10_000, ge=3, le=10_000_000, description="tokens there are, padding and unknown included"
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of texts held out where there is no test file"
    )

    def load(self) -> DataSplits:
        """Read the files and build the vocabulary.

        Raises:
            ScenarioError: A file is missing or damaged, or a line has no such key; names
                the line.
        """
        train = self._read(self.train, "data.train")
        test = self._read(self.test, "data.test") if self.test is not None else None
        counts = Counter(word for words in train.words for word in words)
        # Of equal frequency in alphabetical order, or the vocabulary would depend on the
        # order of the lines.
        frequent = sorted(counts, key=lambda word: (-counts[word], word))
        vocabulary = (PADDING, UNKNOWN, *frequent[: self.vocabulary - 2])
        numbers = {word: token for token, word in enumerate(vocabulary)}
        files = [texts for texts in (train, test) if texts is not None]
        labels = [as_labels(np.array(texts.labels), "data.label", self.label) for texts in files]
        classes = count_classes(*labels)

        def dataset(texts: _Texts, labels: npt.NDArray[np.int64]) -> Dataset:
            return Dataset(
                self._tokens(texts.words, numbers),
                labels,
                classes,
                {name: np.array(values) for name, values in texts.attributes.items()},
                vocabulary,
            )

        datasets = [dataset(*each) for each in zip(files, labels, strict=True)]
        if len(datasets) == 1:
            return hold_out(datasets[0], self.test_fraction, "data.train")
        return checked(DataSplits(*datasets), "data.train")

    def _tokens(self, texts: Iterable[list[str]], numbers: dict[str, int]) -> npt.NDArray[np.int64]:
        rows = [[numbers.get(word, 1) for word in words[: self.length]] for words in texts]
        padded = np.zeros((len(rows), self.length), dtype=np.int64)
        for row, tokens in zip(padded, rows, strict=True):
            row[: len(tokens)] = tokens
        return padded

    def _read(self, path: Path, key: str) -> _Texts:
        texts = _Texts([], [], {name: [] for name in self.attributes})
        try:
            opened = gzip.open if path.suffix == ".gz" else open
            with opened(path, "rt", encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        self._add(texts, json.loads(line), f"{path}, line {number}", key)
        except FileNotFoundError:
            raise ScenarioError(Problem(key, f"there is no file {str(path)!r}.")) from None
        except (OSError, EOFError, ValueError, zlib.error) as error:
            place = f"{path}, line {number}" if "number" in locals() else str(path)
            raise ScenarioError(
                Problem(key, f"{place} cannot be read as JSON lines: {error}.")
            ) from error
        if not texts.words:
            raise ScenarioError(Problem(key, f"{str(path)!r} holds no texts."))
        return texts

    def _add(self, texts: _Texts, entry: Any, place: str, key: str) -> None:
        present = list(entry) if isinstance(entry, dict) else []
        for field, name in [
            ("text", self.text),
            ("label", self.label),
            *(("attributes", name) for name in self.attributes),
        ]:
            if name not in present and (field, name) != ("attributes", _WORDS):
                raise ScenarioError(
                    Problem(
                        f"data.{field}",
                        f"{place} has no {name!r}, only {', '.join(present) or 'no keys'}."
                        + nearest(name, present),
                    )
                )
        words = _WORD.findall(_MARKUP.sub(" ", str(entry[self.text])).lower())
        texts.words.append(words)
        texts.labels.append(entry[self.label])
        for name in self.attributes:
            texts.attributes[name].append(entry.get(name, len(words)))
