"""What the words of a text are, which is a part of what the stores hold."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwait.documents.words import is_character, rarest, terms, words


def test_the_words_of_every_character_are_those_of_every_python() -> None:
    """SQLite's index is told what to forget in the words it was told: to change them is a new format of the store."""
    found = hashlib.sha256()
    for code in range(0x110000):
        found.update(words(chr(code)).encode() + b"|")
    assert found.hexdigest()[:16] == "7d0aee938a73e085"


@given(st.text(st.characters() | st.sampled_from("\x00\ud800\u0301\u00ad東かが゛ß")))
def test_words_stay_what_they_are(text: str) -> None:
    found = words(text).split()
    assert words(" ".join(found)).split() == found
    for word in found:
        word.encode()
        # What SQLite's tokenizer takes for a word: it divides at all ASCII but letters and digits.
        assert all(character.isalnum() or not character.isascii() for character in word)
        assert word == word.lower() or not word.isascii()
        assert len(word) == 1 or not any(map(is_character, word))


@pytest.mark.parametrize(
    ("counts", "most", "chosen"),
    [
        ([5, 3, 2], 10, [0, 1, 2]),
        ([5, 3, 2], 9, [1, 2]),
        ([0, 3, 0], 1, [1]),
        ([50, 60, 40], 10, [1]),  # the longest of those that are too many
        ([0, 0, 0], 10, []),
    ],
)
def test_the_rarest_are_ranked(counts: list[int], most: int, chosen: list[int]) -> None:
    assert rarest([("a",), ("bcd",), ("ef",)], counts, most) == chosen


def test_a_query_has_not_too_many_terms() -> None:
    assert len(terms(" ".join(f"word{n}" for n in range(10_000)))) == 64
