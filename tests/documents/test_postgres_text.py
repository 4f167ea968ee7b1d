"""Text as PostgreSQL can hold it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwait.documents.postgres_text import like, original, stored

ANY_TEXT = st.text(st.characters() | st.sampled_from("\x00\x01\x08\x0e\x10\ud800\udfff\ud83d\ude00"))


@given(ANY_TEXT)
def test_what_is_stored_comes_back(text: str) -> None:
    inside = stored(text)
    inside.encode()
    assert "\x00" not in inside
    assert original(inside) == text


@given(st.text(), st.text())
def test_different_texts_are_stored_differently(one: str, two: str) -> None:
    assert (stored(one) == stored(two)) == (one == two)


@pytest.mark.parametrize(
    ("source", "pattern"),
    [("a_b%c\\", "a\\_b\\%c\\\\%"), ("*/x_*.md", "%/x\\_%.md"), ("", "%")],
)
def test_a_source_is_no_pattern_of_sql(source: str, pattern: str) -> None:
    assert like(source) == pattern
