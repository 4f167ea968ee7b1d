from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwait.documents.snippets import snippet

FILLER = " ".join(f"filler{n}" for n in range(60))


def test_a_short_text_is_shown_whole_in_one_line() -> None:
    assert snippet("  One\n\ntwo\tthree. ", "two") == "One two three."
    assert snippet("", "two") == ""


def test_the_passage_with_most_of_the_words_is_shown() -> None:
    text = f"rotate {FILLER} to rotate the signing key, do this {FILLER} key {FILLER}"
    shown = snippet(text, "How do I rotate a key?")
    assert "rotate the signing key" in shown
    assert len(shown) <= 200
    assert shown.startswith("…")
    assert shown.endswith("…")


def test_a_repeated_word_counts_once() -> None:
    text = f"key key key key key {FILLER} rotating keys {FILLER}"
    assert "rotating keys" in snippet(text, "rotate key")


def test_long_words_weigh_more_than_short_ones() -> None:
    text = f"how do i see it {FILLER} replication {FILLER}"
    assert "replication" in snippet(text, "how i do replication")


def test_other_forms_of_a_word_are_found() -> None:
    for written, asked in [
        ("indexes", "index"),
        ("rotation", "rotate"),
        ("QUERIES", "query"),
        ("Straße", "STRASSE"),
    ]:
        shown = snippet(f"{FILLER} {FILLER} {written} {FILLER} {FILLER}", asked)
        assert written in shown, (written, asked)


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("東京タワー", "私は東京タワーに"),
        ("cafe strasse", "CAFÉ in der Straße"),
        ("café", "cafe\u0301 noir"),
        ("create_task", "asyncio.create_task(it)"),
        ("C++ don't", "C++ and don\u2019t"),
        ("a" * 20_000 + " zebra", "a zebra"),
    ],
)
def test_what_the_full_text_finds_is_shown(query: str, shown: str) -> None:
    filler = "語彙" * 300 if query.startswith("東") else "filler words " * 80
    assert shown in snippet(f"{filler} {shown} {filler}", query)
    if query.startswith("東"):
        assert shown in snippet(f"{filler}{shown}{filler}", query)


def test_a_query_of_any_length_is_little_work() -> None:
    query = " ".join(f"word{n}" for n in range(20_000))
    text = " ".join(f"other{n}" for n in range(3_000))
    started = time.process_time()
    snippet(text, query)
    assert time.process_time() - started < 2


def test_without_the_words_the_beginning_is_shown() -> None:
    for query in ("nowhere", "", "?!"):
        shown = snippet(f"{FILLER} {FILLER}", query)
        assert shown.startswith("filler0 filler1")
        assert shown.endswith("…")


def test_it_is_cut_between_words() -> None:
    words = set(FILLER.split()) | {"needle"}
    for n in range(0, 60, 7):
        parts = FILLER.split()
        text = " ".join([*parts[:n], "needle", *parts[n:]])
        shown = snippet(text, "needle")
        assert "needle" in shown
        assert set(shown.strip("…").split()) <= words


def test_a_text_without_spaces_is_cut_all_the_same() -> None:
    assert snippet("x" * 1000, "y") == "x" * 198 + "…"


def test_nothing_in_it_steers_a_terminal_or_cannot_be_printed() -> None:
    shown = snippet("a\x1b[31mred\x07 \x9b1m \u202eright\u2066 \ud800 nul\x00 b\u2028c", "red")
    assert shown == "a [31mred 1m right \ufffd nul b c"


@given(st.text(st.characters(codec=None), max_size=600), st.text(max_size=40), st.integers(10, 300))
def test_it_is_one_printable_line_within_its_length_and_part_of_the_text(
    text: str, query: str, most: int
) -> None:
    shown = snippet(text, query, most=most)
    assert len(shown) <= most
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    whole = snippet(text, query, most=len(text) + 1)
    assert shown.removeprefix("…").removesuffix("…") in whole


@pytest.mark.parametrize("where", [0, 30, 59])
def test_a_word_that_is_there_is_shown(where: int) -> None:
    parts = [f"{n}word" for n in range(60)]
    assert parts[where] in snippet(" ".join(parts), parts[where], most=60)
