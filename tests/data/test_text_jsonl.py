"""Texts as tokens, against a vocabulary counted by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedleak.data.text_jsonl import TextJsonl
from fedleak.errors import ScenarioError
from fedleak.records import DataSplits

LINES = [
    {"text": "The cat, the CAT<br />and the dog.", "label": 0, "rating": 3},
    {"text": "A dog isn't a cat!", "label": 1, "rating": 9},
    {"text": "", "label": 1, "rating": 7},
]
WORDS = ("<padding>", "<unknown>", "cat", "the", "a", "dog", "and", "isn't")


def written(path: Path, lines: list[Any]) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def loaded(folder: Path, suffix: str = ".jsonl", **options: Any) -> DataSplits:
    train = written(folder / f"train{suffix}", LINES)
    test = written(folder / f"test{suffix}", [{"text": "The bird and", "label": 1, "rating": 1}])
    return TextJsonl(train=train, test=test, **{"length": 5, **options}).load()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_the_most_frequent_words_are_the_vocabulary(tmp_path: Path, suffix: str) -> None:
    splits = loaded(tmp_path, suffix, attributes=["rating"])
    # Three times cat and the, twice a and dog, once and and isn't; alphabetical in between.
    assert splits.train.vocabulary == splits.test.vocabulary == WORDS
    assert splits.train.inputs.tolist() == [[3, 2, 3, 2, 6], [4, 5, 7, 4, 2], [0, 0, 0, 0, 0]]
    assert splits.test.inputs.tolist() == [[3, 1, 6, 0, 0]]
    assert splits.train.labels.tolist() == [0, 1, 1] and splits.train.classes == 2
    assert splits.train.attributes["rating"].tolist() == [3, 9, 7]
    assert splits.train.samples(np.array([1])).dtype == np.int64


def test_words_are_counted_in_the_whole_text(tmp_path: Path) -> None:
    splits = loaded(tmp_path, attributes=["words", "rating"])
    assert splits.train.attributes["words"].tolist() == [7, 5, 0]
    assert splits.test.attributes["words"].tolist() == [3]
    # A key of that name is the user's own.
    train = written(tmp_path / "own.jsonl", [{**line, "words": "few"} for line in LINES])
    own = TextJsonl(train=train, attributes=["words"], test_fraction=0.34).load()
    assert own.train.attributes["words"].tolist() == ["few", "few"]


def test_a_small_vocabulary_leaves_words_unknown(tmp_path: Path) -> None:
    splits = loaded(tmp_path, vocabulary=4)
    assert splits.train.vocabulary == WORDS[:4]
    assert splits.train.inputs[1].tolist() == [1, 1, 1, 1, 2]


def test_texts_are_held_out_where_there_is_no_test_file(tmp_path: Path) -> None:
    train = written(tmp_path / "all.jsonl", LINES)
    splits = TextJsonl(train=train, length=3, test_fraction=0.34).load()
    assert (len(splits.train), len(splits.test)) == (2, 1)
    assert splits.train.vocabulary == splits.test.vocabulary == WORDS


@pytest.mark.parametrize(
    ("lines", "options", "path", "message"),
    [
        (["{}"], {}, "data.text", "line 1 has no 'text', only no keys"),
        ([*LINES, {"txt": "x", "label": 0}], {}, "data.text", "line 4 has no 'text', only txt"),
        (LINES, {"label": "lable"}, "data.label", "did you mean 'label'"),
        (LINES, {"attributes": ["age"]}, "data.attributes", "has no 'age'"),
        ([*LINES, "{"], {}, "data.train", "line 4 cannot be read as JSON lines"),
        ([LINES[0], {"text": "x", "label": "bad"}], {}, "data.label", "label"),
        ([""], {}, "data.train", "holds no texts"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    tmp_path: Path, lines: list[Any], options: dict[str, Any], path: str, message: str
) -> None:
    train = written(tmp_path / "train.jsonl", lines)
    with pytest.raises(ScenarioError) as told:
        TextJsonl(train=train, **options).load()
    assert told.value.problems[0].path == path
    assert message.lower() in told.value.problems[0].message.lower()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="there is no file"):
        TextJsonl(train=tmp_path / "none.jsonl").load()
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"text": "x", "label": 0}\n' * 100)[:20])
    with pytest.raises(ScenarioError, match="cannot be read as JSON lines"):
        TextJsonl(train=cut).load()


def test_imdb(real_data: Path) -> None:
    """All reviews, the paper's 250 tokens of 10,000 words."""
    folder = real_data / "imdb"
    splits = TextJsonl(
        train=folder / "imdb_train.jsonl.gz",
        test=folder / "imdb_test.jsonl.gz",
        attributes=["rating", "words"],
    ).load()
    assert splits.train.inputs.shape == (4000, 250) and splits.test.inputs.shape == (2000, 250)
    words, held = splits.train.attributes["words"], (splits.train.inputs > 0).sum(1)
    assert np.array_equal(np.minimum(words, 250), held) and words.max() > 1000
    assert len(splits.train.vocabulary) == 10_000
    assert splits.train.vocabulary[2] == "the"
    assert splits.train.labels.mean() == 0.5
