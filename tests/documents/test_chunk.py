from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unwait.documents.chunk import chunks
from unwait.documents.model import Chunk, Mark, Text, digest

PARAGRAPH = "The planner chooses the cheapest path. It knows the costs of each one, more or less.\n\n"

characters = (
    st.characters()
    | st.sampled_from("\n\n\n   \t\r\0\ud800\udc00é😀\u0301#-*`|.")
    | st.sampled_from("abcdef")
)
pieces = st.text(characters, max_size=30) | st.sampled_from(
    [PARAGRAPH, "\n\n", "# Title\n\n", "```\ncode\n\n```\n", "- item\n", " " * 40, "x" * 60]
)
names = st.sampled_from(["a", "b", "c"])


@st.composite
def texts(draw: st.DrawFn) -> Text:
    body = "".join(draw(st.lists(pieces, max_size=25)))
    offsets = sorted(draw(st.lists(st.integers(0, len(body)), max_size=8)))
    marks = [
        Mark(offset, tuple(draw(st.lists(names, max_size=3))), draw(st.none() | st.integers(1, 3)))
        for offset in [0, *offsets]
    ]
    return Text(body, "title", draw(st.sampled_from(["text", "markdown", "html"])), tuple(marks))


def one(body: str, format: str = "text") -> Text:
    return Text(body, "title", format)


def sectioned(*sections: tuple[tuple[str, ...], str]) -> Text:
    body, marks = "", []
    for path, words in sections:
        marks.append(Mark(len(body), path))
        body += words
    return Text(body, "title", "html", tuple(marks))


def cut(text: Text, size: int = 1000, overlap: int = 0) -> list[Chunk]:
    return chunks("file:///a", text, size=size, overlap=overlap, version="1")


def spans(text: Text) -> Iterator[tuple[int, int, Mark]]:
    """The sections as the marks make them, without those of no length."""
    ends = [mark.offset for mark in text.marks[1:]] + [len(text.text)]
    for mark, end in zip(text.marks, ends, strict=True):
        if mark.offset < end:
            yield mark.offset, end, mark


def own(made: list[Chunk]) -> list[tuple[int, int]]:
    """What each chunk adds to those before it."""
    ends = [0, *(chunk.end for chunk in made)]
    return [(end, chunk.end) for end, chunk in zip(ends, made, strict=False)]


sizes = st.integers(1, 120)


@settings(max_examples=300, deadline=None)
@given(texts(), sizes)
@example(one(""), 1)
@example(one("\ud800" * 50, "markdown"), 7)
@example(one("e\u0301" * 40), 1)
def test_chunks_are_the_text_none_is_too_large_and_offsets_are_true(text: Text, size: int) -> None:
    made = cut(text, size)
    assert "".join(chunk.text for chunk in made) == text.text
    for position, chunk in enumerate(made):
        assert chunk.position == position
        assert 0 < len(chunk.text) <= size
        assert chunk.text == text.text[chunk.start : chunk.end]
        assert chunk.id == digest("file:///a", str(position), chunk.text, "1")
    assert made == cut(text, size)


@settings(max_examples=300, deadline=None)
@given(texts(), sizes, st.data())
def test_an_overlap_is_what_is_directly_before_in_the_section(
    text: Text, size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    made = cut(text, size, overlap)
    put_together = ""
    for before, chunk in zip([None, *made], made, strict=False):
        assert chunk.text == text.text[chunk.start : chunk.end]
        assert len(chunk.text) <= size
        repeated = len(put_together) - chunk.start
        assert (
            repeated in (0, overlap)
            or (
                before is not None
                and repeated == len(before.text) < overlap  # all there is of the section so far
            )
            or (repeated < overlap and any(chunk.start == start for start, *_ in spans(text)))
        )
        put_together += chunk.text[repeated:]
    assert put_together == text.text


@settings(max_examples=300, deadline=None)
@given(texts(), sizes)
def test_a_chunk_of_several_sections_is_of_tiny_ones_and_has_the_path_they_share(
    text: Text, size: int
) -> None:
    made = cut(text, size)
    for chunk in made:
        parts = [
            (mark, words)
            for start, end, mark in spans(text)
            if (words := text.text[max(start, chunk.start) : min(end, chunk.end)])
            and start < chunk.end
            and not words.isspace()
        ]
        paths = {mark.section for mark, _ in parts}
        if len(paths) == 1:
            assert chunk.section == paths.pop()
        for mark, _ in parts:
            assert mark.section[: len(chunk.section)] == chunk.section
        if parts:
            assert chunk.page == parts[0][0].page
        lengths = [
            sum(len(words) for _, words in group)
            for _, group in groupby(parts, key=lambda part: (part[0].section, part[0].page))
        ]
        assert len(lengths) < 2 or sum(length >= size / 4 for length in lengths) <= 1


@settings(max_examples=200, deadline=None)
@given(texts(), sizes)
def test_chunks_of_whitespace_only_are_left_where_nothing_has_room_for_them(text: Text, size: int) -> None:
    made = cut(text, size)
    for before, chunk in pairwise(made):
        if chunk.text.isspace() and before.section == chunk.section and before.page == chunk.page:
            assert len(before.text) + len(chunk.text) > size


def test_small_siblings_go_together_under_their_parent() -> None:
    made = cut(sectioned((("A",), "Intro.\n\n"), (("A", "B"), "b. " * 10), (("A", "C"), "c. " * 100)), 1000)
    assert [(chunk.section, chunk.text[:2]) for chunk in made] == [(("A",), "In")]


def test_sections_of_other_chapters_stay_apart_however_small() -> None:
    text = sectioned((("A", "B"), "Small. "), (("C", "D"), "Small. "), (("C",), "Small. "))
    assert [chunk.section for chunk in cut(text)] == [("A", "B"), ("C",)]


def test_large_sections_stay_apart_though_they_would_fit() -> None:
    text = sectioned((("A",), "a. " * 100), (("B",), "b. " * 100))
    assert [chunk.section for chunk in cut(text)] == [("A",), ("B",)]


def test_a_tiny_last_section_goes_to_the_one_before() -> None:
    made = cut(sectioned((("A", "B"), "b. " * 100), (("A", "C"), "The end.")))
    assert [chunk.section for chunk in made] == [("A",)]


def test_pages_are_kept_and_a_title_page_goes_with_the_next() -> None:
    body = ["Title\n\n", "a. " * 200, "b. " * 200]
    marks = tuple(Mark(sum(map(len, body[:n])), (), n + 1) for n in range(3))
    made = cut(Text("".join(body), "t", "pdf", marks))
    assert [(chunk.page, len(chunk.text)) for chunk in made] == [(1, 607), (3, 600)]


def test_of_marks_in_one_place_the_last_counts() -> None:
    text = Text(
        "words of a section", "t", "html", (Mark(0), Mark(0, ("A",)), Mark(0, ("A", "B")), Mark(18, ("C",)))
    )
    assert [(chunk.section, chunk.text) for chunk in cut(text)] == [(("A", "B"), "words of a section")]


def test_text_before_the_first_mark_is_not_lost() -> None:
    text = Text("0123456789" * 50, "t", "html", (Mark(300, ("A",)),))
    assert "".join(chunk.text for chunk in cut(text)) == text.text


def test_an_edit_changes_only_the_chunks_of_its_section() -> None:
    sections = [((name,), name + PARAGRAPH * 40) for name in "ABCDE"]
    edited = [
        (path, words.replace("cheapest", "dearest", 3)) if path == ("C",) else (path, words)
        for path, words in sections
    ]
    before, after = cut(sectioned(*sections)), cut(sectioned(*edited))
    assert [c.digest for c in before if c.section != ("C",)] == [
        c.digest for c in after if c.section != ("C",)
    ]
    assert [c.digest for c in before] != [c.digest for c in after]


def test_an_edited_word_changes_few_chunks_of_a_long_section() -> None:
    numbered = [f"{n}. {PARAGRAPH * (1 + n % 3)}" for n in range(200)]
    before = {chunk.digest for chunk in cut(one("".join(numbered)))}
    numbered[77] = numbered[77].replace("cheapest", "best")
    after = [chunk.digest for chunk in cut(one("".join(numbered)))]
    assert 1 <= sum(digest not in before for digest in after) <= 3


def test_paragraphs_stay_whole_where_they_fit() -> None:
    made = cut(one(PARAGRAPH * 50), 200)
    assert {chunk.text for chunk in made} == {PARAGRAPH * 2}


def test_markdown_is_cut_between_its_blocks() -> None:
    code = "```\n" + "line\n\n" * 12 + "```\n"
    made = cut(one(PARAGRAPH + code + PARAGRAPH, "markdown"), 100)
    assert code in [chunk.text.lstrip("\n").rstrip("\n") + "\n" for chunk in made]


def test_a_last_piece_too_small_to_be_found_is_balanced_with_the_one_before() -> None:
    sizes = [len(chunk.text) for chunk in cut(one("A sentence of some words. " * 40))]
    assert len(sizes) == 2
    assert min(sizes) > 400


def test_a_heading_does_not_stay_alone_before_a_paragraph_that_fills_a_chunk() -> None:
    text = "26.3.5. Timelines\n\n" + "A sentence of some words. " * 38 + "\n\n" + PARAGRAPH * 20
    made = cut(one(text))
    assert made[0].text.startswith("26.3.5. Timelines\n\nA sentence of some words. ")
    assert min(len(chunk.text) for chunk in made) > 250


def test_the_id_depends_on_all_that_it_is_made_of() -> None:
    text = one("words")
    ids = {
        chunks(uri, made, version=version)[0].id
        for uri, made, version in [
            ("a", text, "1"),
            ("b", text, "1"),
            ("a", one("word"), "1"),
            ("a", text, "2"),
        ]
    }
    assert len(ids) == 4


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (-5, 0), (10, 10), (10, 11), (10, -1)])
def test_sizes_that_cannot_be_are_refused(size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=r"the (size of chunks|overlap) must be"):
        cut(one("text"), size, overlap)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: one("x" * n),
        lambda n: one(" " * n, "markdown"),
        lambda n: one("a\n" * (n // 2), "markdown"),
        lambda n: Text(
            "abc\n\n" * (n // 5), "t", "html", [Mark(5 * i, ("t", str(i))) for i in range(n // 5)]
        ),
        lambda n: Text("abc\n\n", "t", "html", [Mark(0)] + [Mark(2, (str(i),)) for i in range(n // 5)]),
    ],
    ids=["one word", "only spaces", "short lines", "many sections", "marks in one place"],
)
def test_the_time_is_linear_in_the_text(make: Callable[[int], Text]) -> None:
    def seconds(n: int) -> float:
        text = make(n)
        begun = time.process_time()
        made = cut(text)
        took = time.process_time() - begun
        assert sum(len(chunk.text) for chunk in made) == len(text.text)
        return took

    seconds(10_000)
    # Quadratic would be 64 times.
    assert seconds(800_000) < 24 * seconds(100_000) + 0.05


def test_a_missing_library_is_named_with_the_way_to_install_it() -> None:
    script = "import sys; sys.modules['semantic_text_splitter'] = None; import unwait.documents.chunk"
    failed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert 'pip install "unwait[documents]"' in failed.stderr
