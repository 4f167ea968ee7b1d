from __future__ import annotations

import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unwait.documents.chunk import chunks
from unwait.documents.extractive import _sentences, summary
from unwait.documents.model import Chunk, Mark, Text

TABLE = "Name | Type | Size\nid | integer | 4\nname | text | 12\nwhen | timestamp | 8\n\n"
CODE = "def f(x):\n    return {k: v[0] for k, v in x.items()}\n\nif a[1] == b[2]: c(d(e)); f = [1, 2, 3];\n\n"
FILL = "And so on and so forth until the chunk is full of words that mean nothing at all "


def made_of(*pieces: str, section: tuple[str, ...] = ()) -> list[Chunk]:
    found, at = [], 0
    for position, piece in enumerate(pieces):
        found.append(Chunk(str(position), position, at, at + len(piece), piece, section))
        at += len(piece)
    return found


def directions(*numbers: int) -> np.ndarray:
    """Vectors of which those of the same number are the same and all others at right angles."""
    vectors = np.zeros((len(numbers), 16), dtype=np.float32)
    for row, number in enumerate(numbers):
        vectors[row, number] = 1
    return vectors


def sentences_of(text: str) -> list[str]:
    return [text[start:end] for start, end in _sentences(text)]


def single_spaced(text: str) -> str:
    return " ".join(text.split())


characters = st.sampled_from("abcABC .!?\n\n  |#-*`\"'()1…。é日\ud800\0") | st.characters()
bodies = st.lists(
    st.text(characters, max_size=40)
    | st.sampled_from(
        [
            "The cat sat on the mat. ",
            "Is it so that dogs bark?\n\n",
            "# Heading\n\n",
            "- one item\n",
            TABLE,
            CODE,
            FILL,
        ]
    ),
    max_size=40,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(
    bodies,
    st.integers(1, 300),
    st.integers(0, 60),
    st.integers(0, 5),
    st.integers(0, 300),
    st.integers(0, 2**32 - 1),
)
def test_any_summary_is_short_enough_and_in_the_words_of_the_text(
    body: str, size: int, overlap: int, sentences: int, characters: int, seed: int
) -> None:
    cut = chunks("u", Text(body, "t", "text"), size=size, overlap=min(overlap, size - 1), version="1")
    vectors = np.random.default_rng(seed).standard_normal((len(cut), 8)).astype(np.float32)
    kept = vectors.copy()
    made = summary(cut, vectors, sentences=sentences, characters=characters)
    assert len(made) <= characters
    assert made == summary(cut, vectors, sentences=sentences, characters=characters)
    assert (vectors == kept).all()
    if len(body) <= characters and sentences and characters:
        assert made == body.strip()
    elif sentences == 1:
        assert made.removesuffix("…") in single_spaced(body)


@settings(max_examples=200, deadline=None)
@given(st.permutations(range(12)), st.integers(0, 2**32 - 1))
def test_sentences_are_quoted_word_for_word_in_the_order_of_the_text(order: list[int], seed: int) -> None:
    pieces = [f"Sentence number {n} is about words. {FILL * 3}\n\n" for n in order]
    vectors = np.random.default_rng(seed).standard_normal((12, 8)).astype(np.float32)
    made = summary(made_of(*pieces), vectors)
    quoted = re.findall(r"Sentence number \d+ is about words\.", made)
    assert " ".join(quoted) == made
    places = ["".join(pieces).index(sentence) for sentence in quoted]
    assert len(places) == 3
    assert places == sorted(places)


@settings(max_examples=300, deadline=None)
@given(bodies)
def test_sentences_follow_each_other_and_leave_out_only_markers_and_whitespace(body: str) -> None:
    end = 0
    for start, stop in _sentences(body):
        assert end <= start < stop
        assert not re.search(r"[^\W\d_]{2}", body[end:start])
        end = stop
    assert not body[end:].strip() or not re.search(r"[^\W\d_]{2}", body[end:])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One is here. Two is there! Three?", ["One is here.", "Two is there!", "Three?"]),
        ("See e.g. Smith et al. for more. Next.", ["See e.g. Smith et al. for more.", "Next."]),
        ("Mr. Jones and Dr. J. R. Smith of the U.S. Army came.", None),
        ("Version 15.2 of a.b.c is out.", None),
        ("Cf. Fig. 3 and No. 7, approx. 20 Mb.", None),
        ("He said “Stop.” Then he went.", ["He said “Stop.”", "Then he went."]),
        ("日本語の文。次の文。", ["日本語の文。", "次の文。"]),
        ("A line that\ngoes on. And ends.", ["A line that\ngoes on.", "And ends."]),
        ("Heading\n\nText here.", ["Heading", "Text here."]),
        ("Choose:\n- the first one\n- the second one", ["Choose:", "the first one", "the second one"]),
        ("1. Open it.\n2. Close it.", ["Open it.", "Close it."]),
        ("Das ist gut. Übrigens auch das.", ["Das ist gut.", "Übrigens auch das."]),
        ("", []),
        (" \n\n ", []),
    ],
)
def test_where_sentences_end(text: str, expected: list[str] | None) -> None:
    assert sentences_of(text) == ([text] if expected is None else expected)


def test_a_short_text_is_its_own_summary() -> None:
    cut = chunks("u", Text("  A heading\n\nA few words.\n", "t", "text"), size=10, overlap=4, version="1")
    assert summary(cut, directions(*range(len(cut)))) == "A heading\n\nA few words."


def test_no_chunks_no_summary() -> None:
    assert summary([], np.zeros((0, 256), dtype=np.float32)) == ""


def test_chunks_that_say_the_same_are_quoted_once() -> None:
    pieces = [
        f"Chunk {name} has something to say. {FILL * 3}\n\n" for name in ("one", "two", "three", "four")
    ]
    made = summary(made_of(*pieces), directions(0, 0, 1, 2))
    assert re.findall(r"Chunk (\w+) has", made) == ["one", "three", "four"]


def test_the_chunk_nearest_to_the_whole_is_quoted_first() -> None:
    pieces = [
        f"Chunk {name} has something to say. {FILL * 3}\n\n" for name in ("one", "two", "three", "four")
    ]
    made = summary(made_of(*pieces), directions(0, 1, 1, 2), sentences=1)
    assert made == "Chunk two has something to say."


@pytest.mark.parametrize(
    "worse", [TABLE * 4, CODE * 4, "A heading\n\nAnother heading\n\n" * 8, "1.2.\n\nIV.\n\n" * 20]
)
def test_tables_code_and_headings_are_left_out_if_there_is_better(worse: str) -> None:
    cut = made_of(worse, worse, worse, "A heading\n\nThere is one sentence only. " + FILL * 3, worse)
    assert summary(cut, directions(0, 0, 0, 1, 0)) == "There is one sentence only."


def test_where_there_is_nothing_better_a_heading_it_is() -> None:
    cut = made_of("Contents of the chapters\n\n" + TABLE * 8, TABLE * 8)
    assert summary(cut, directions(0, 1), sentences=1) == "Contents of the chapters"


def test_the_heading_of_the_section_is_no_sentence_of_it() -> None:
    text = "What is it that a planner does? \n\nIt chooses the best plan for a query. " + FILL * 8
    made = summary(made_of(text, section=("Planner", "What is it that a planner does?")), directions(0))
    assert made == "It chooses the best plan for a query."


def test_the_end_of_a_sentence_that_began_in_the_chunk_before_is_not_quoted() -> None:
    cut = made_of(
        "This sentence is longer than a chunk because of Mr ",
        "Miller who is in it. A whole sentence is found in here. " + FILL * 8,
    )
    assert summary(cut, directions(0, 1), sentences=1) == "A whole sentence is found in here."


def test_a_sentence_too_long_for_the_summary_is_cut_at_a_word() -> None:
    made = summary(made_of("Word " * 500 + "end."), directions(0), characters=50)
    assert made == "Word " * 8 + "Word…"


@pytest.mark.parametrize(
    "body",
    ["." * 300_000, "a. " * 100_000, "\n" * 300_000, "- " * 150_000, "((((" * 70_000, "x.\n- " * 60_000],
)
def test_foreign_text_takes_bounded_time(body: str) -> None:
    begun = time.process_time()
    summary(made_of(body), directions(0))
    summary(
        chunks("u", Text(body, "t", "text", (Mark(0),)), version="1")[:50], np.ones((50, 4), dtype=np.float32)
    )
    assert time.process_time() - begun < 5


def test_rows_of_dots_take_no_time() -> None:
    started = time.process_time()
    text = "Introduction " + "." * 3_900 + " i"
    assert sentences_of(text) == [text]
    assert sentences_of("One " + "." * 3_000 + " Two.") == ["One " + "." * 3_000, "Two."]
    assert sentences_of("One.\n" + "\v\n" * 1_900 + "- Two.") == ["One.", "Two."]
    assert time.process_time() - started < 0.2
