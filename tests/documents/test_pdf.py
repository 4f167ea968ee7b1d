"""PDF to text: pages, paragraphs, sections; files that cannot be read. The PDFs are written here, byte by byte."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unwait.documents.extract import extract
from unwait.documents.model import Content, SourceFailed, Text

ENCRYPTION = b"<< /Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s> >>" % (b"61" * 32, b"62" * 32)


def written(
    pages: Sequence[str],
    *,
    info: str = "",
    outline: Sequence[tuple[str, int]] = (),
    encryption: bytes = b"",
    count: int | None = None,
) -> bytes:
    """A PDF with these content streams; the outline's entries are titles with the index of their page."""
    objects: list[bytes] = []

    def add(body: bytes) -> int:
        objects.append(body)
        return len(objects)

    catalog, tree, outlines = add(b""), add(b""), add(b"<< >>")
    font = add(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>")
    kids = []
    for page in pages:
        stream = page.encode("cp1252")
        content = add(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        kids.append(
            add(
                b"<< /Type /Page /Parent %d 0 R /MediaBox [0 0 612 792] /Contents %d 0 R"
                b" /Resources << /Font << /F1 %d 0 R >> >> >>" % (tree, content, font)
            )
        )
    entries = range(len(objects) + 1, len(objects) + 1 + len(outline))
    for number, (title, page) in zip(entries, outline, strict=True):
        following = b" /Next %d 0 R" % (number + 1) if number + 1 in entries else b""
        add(
            b"<< /Title (%s) /Parent %d 0 R /Dest [%d 0 R /Fit]%s >>"
            % (title.encode(), outlines, kids[page], following)
        )
    if entries:
        objects[outlines - 1] = b"<< /Type /Outlines /First %d 0 R /Last %d 0 R >>" % (
            entries[0],
            entries[-1],
        )
    about = add(f"<< {info} >>".encode())
    objects[tree - 1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (
        len(kids) if count is None else count,
        b" ".join(b"%d 0 R" % kid for kid in kids),
    )
    objects[catalog - 1] = b"<< /Type /Catalog /Pages %d 0 R /Outlines %d 0 R >>" % (tree, outlines)
    trailer = b"/Root %d 0 R /Info %d 0 R" % (catalog, about)
    if encryption:
        trailer += b" /Encrypt %d 0 R /ID [<61> <61>]" % add(encryption)
    body, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    return body + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d %s >>\nstartxref\n%d\n%%%%EOF\n"
        % (size, table, size, trailer, len(body))
    )


def lines(*texts: str, left: int = 72, top: int = 720, size: int = 12, step: int = 14) -> str:
    """A content stream that shows these lines below each other; an empty one leaves a gap."""
    shown = " ".join(f"({text}) Tj T*" for text in texts)
    return f"BT /F1 {size} Tf {step} TL {left} {top} Td {shown} ET\n"


def of(body: bytes, max_characters: int = 1_000_000) -> Text:
    return extract(Content(body, "", "application/pdf"), "/docs/paper.pdf", max_characters=max_characters)


def kind_of(body: bytes, max_characters: int = 1_000_000) -> str:
    with pytest.raises(SourceFailed) as caught:
        of(body, max_characters)
    return caught.value.kind


def test_lines_of_a_paragraph_are_joined_and_words_divided_at_their_end() -> None:
    text = of(
        written(
            [
                lines(
                    "The quick brown fox jumps over the lazy dog, for exam-",
                    "ple, and goes on as long as the line has room for it",
                    "until here.",
                    "",
                    "Another paragraph.",
                )
            ]
        )
    )
    assert text.text == (
        "The quick brown fox jumps over the lazy dog, for example, and goes on as long as the line has room for it"
        " until here.\n\nAnother paragraph."
    )
    assert (text.title, text.format) == ("paper.pdf", "pdf")


def test_lines_that_were_broken_though_they_had_room_stay_broken() -> None:
    prose = ["A line that is as long as a line of this page can be,", "and one that follows it:"]
    code = ["x = 1", "y = 2", "end"]
    assert of(written([lines(*prose, *code)])).text == "\n".join([" ".join(prose), *code])


def test_two_columns_are_read_one_after_the_other() -> None:
    left = lines("one one one one one", "one one one one and", size=10)
    right = lines("two two two two two", "two two two two two", left=350, size=10)
    assert (
        of(written([left + right])).text
        == "one one one one one one one one one and two two two two two two two two two two"
    )


def test_each_page_is_marked() -> None:
    text = of(written([lines("first page"), "", lines("third page")]))
    assert text.text == "first page\n\nthird page"
    assert [(mark.offset, mark.page) for mark in text.marks] == [(0, 1), (12, 3)]


def test_the_outline_makes_sections_where_its_titles_stand() -> None:
    pages = [
        lines("Start", size=20) + lines("words", top=690),
        lines("end of start", "", "Next", "", "more words", "", "Last"),
        lines("elsewhere"),
    ]
    text = of(written(pages, outline=[("Start", 0), ("Next", 1), ("Last", 1), ("Not there", 2)]))
    assert [
        (text.text[mark.offset :].partition("\n")[0], mark.section, mark.page) for mark in text.marks
    ] == [
        ("Start", ("Start",), 1),
        ("end of start", ("Start",), 2),
        ("Next", ("Next",), 2),
        ("Last", ("Last",), 2),
        ("elsewhere", ("Not there",), 3),
    ]
    assert text.title == "Start"


def test_title_author_and_date_come_from_the_file() -> None:
    info = "/Title (A title) /Author (Ann) /Subject (What it is) /CreationDate (D:20240501120000Z)"
    text = of(written([lines("BIG", size=30) + lines("x", top=600)], info=info))
    assert text.title == "A title"
    assert text.metadata == {"author": "Ann", "description": "What it is", "published": "2024-05-01"}
    assert of(written([lines("BIG", size=30) + lines("x", "y", top=600)])).title == "BIG"


def test_an_encrypted_file_says_so() -> None:
    assert kind_of(written([lines("x")], encryption=ENCRYPTION)) == "encrypted"


def test_pages_without_text_say_that_they_may_be_scanned() -> None:
    with pytest.raises(SourceFailed, match="scanned") as caught:
        of(written(["0 0 100 100 re f", ""]))
    assert caught.value.kind == "empty"


def test_a_damaged_file_is_broken() -> None:
    assert kind_of(b"%PDF-1.4\n" + b"rubbish " * 100) == "broken"
    assert kind_of(b"%PDF-1.4\n%%EOF") == "broken"
    assert kind_of(written([])) == "broken"


def test_a_page_that_cannot_be_read_costs_that_page_only() -> None:
    text = of(written([lines("one")], count=3))
    assert text.text == "one"
    assert text.metadata == {"unreadable_pages": 2}


def test_too_much_text_is_refused() -> None:
    body = written([lines("12345"), lines("789")])
    assert of(body, 10).text == "12345\n\n789"
    assert kind_of(body, 9) == "too large"
    assert kind_of(body, 4) == "too large"


def compressed(stream: bytes) -> bytes:
    data = zlib.compress(stream)
    before = b"<< /Length 1 >>\nstream\nX\n"
    after = b"<< /Filter /FlateDecode /Length %d >>\nstream\n%s\n" % (len(data), data)
    return written(["X"]).replace(before, after)


def test_a_page_that_grows_without_bounds_is_refused_before_it_is_read() -> None:
    assert kind_of(compressed(b"BT /F1 9 Tf 9 9 Td " + b"(hello) Tj " * 4_000_000 + b" ET")) == "too large"
    assert of(compressed(b"BT /F1 9 Tf 9 9 Td " + b"(hello) Tj " * 1000 + b" ET")).text == "hello" * 1000


def test_what_only_looks_like_streams_takes_no_time() -> None:
    started = time.process_time()
    kind_of(b"%PDF-1.4\n" + b"stream\nx" * 300_000)
    kind_of(b"%PDF-1.4\n" + b"stream\nx\x9c" * 300_000)
    assert time.process_time() - started < 5


def test_threads_take_turns() -> None:
    bodies = [written([lines(f"document {number} page {page}") for page in range(20)]) for number in range(4)]
    found: dict[int, str] = {}
    together = threading.Barrier(len(bodies))

    def read(number: int) -> None:
        together.wait()
        for _ in range(3):
            found[number] = of(bodies[number]).text

    threads = [threading.Thread(target=read, args=(number,)) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {
        number: "\n\n".join(f"document {number} page {page}" for page in range(20)) for number in range(4)
    }


WHOLE = written([lines("one", "two"), lines("three")], outline=[("one", 0), ("three", 1)], info="/Title (x)")
damages: dict[str, Callable[[bytes, int, int], bytes]] = {
    "cut": lambda body, at, _: body[:at],
    "changed": lambda body, at, to: body[:at] + bytes([to]) + body[at + 1 :],
    "removed": lambda body, at, to: body[:at] + body[at + to :],
    "repeated": lambda body, at, to: body[: at + to] + body[at:],
}


@settings(max_examples=300)
@given(st.sampled_from(sorted(damages)), st.integers(0, len(WHOLE)), st.integers(0, 255))
def test_any_damage_gives_a_text_or_a_cause(damage: str, at: int, to: int) -> None:
    try:
        text = of(damages[damage](WHOLE, at, to))
    except SourceFailed as failure:
        kind = failure.kind
    else:
        kind = ""
        assert text.text.strip()
        assert text.marks[0].offset == 0
    assert kind in {"", "broken", "empty", "encrypted", "unknown format"}
