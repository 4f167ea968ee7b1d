"""The formats that are text, lines of JSON, and what holds for any bytes."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unwait.documents.extract import extract
from unwait.documents.lines import LINE
from unwait.documents.model import Content, SourceFailed, Text


def of(body: str, name: str, media_type: str | None = None, **options: int | str) -> Text:
    return extract(Content(body.encode(), "", media_type), name, **options)  # type: ignore[arg-type]


def sections(text: Text) -> list[tuple[str, tuple[str, ...]]]:
    """Each section's path, and how its text begins."""
    return [(text.text[mark.offset :].partition("\n")[0], mark.section) for mark in text.marks]


def kind_of(body: bytes, name: str = "/x", media_type: str | None = None, **options: int | str) -> str:
    with pytest.raises(SourceFailed) as caught:
        extract(Content(body, "", media_type), name, **options)  # type: ignore[arg-type]
    return caught.value.kind


def test_plain_text_is_kept_as_it_is_written() -> None:
    text = of("\r\ndef f():\r\n    return 1\r\n\r\n\r\nx = f()\n", "/src/a.py")
    assert text.text == "def f():\n    return 1\n\n\nx = f()"
    assert (text.title, text.format) == ("a.py", "text")


@pytest.mark.parametrize("body", [b"", b" \r\n\t ", b"\xef\xbb\xbf", b"\xff\xfe \x00"])
@pytest.mark.parametrize("name", ["/x.md", "/x.rst", "/x.txt", "/x.html"])
def test_a_file_without_text_is_empty(body: bytes, name: str) -> None:
    assert kind_of(body, name) == "empty"


def test_a_file_of_front_matter_alone_is_empty() -> None:
    assert kind_of(b"---\ntitle: x\n---\n", "/x.md") == "empty"


@pytest.mark.parametrize("name", ["/x.md", "/x.rst", "/x.txt", "/x.html"])
def test_a_text_of_more_than_the_limit_is_too_large(name: str) -> None:
    assert len(of("words words", name, max_characters=11).text) == 11
    assert kind_of(b"words words", name, max_characters=10) == "too large"


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("/docs/a b%20c.txt", "a b%20c.txt"),
        ("https://a.org/docs/a%20b.txt?x=/y#z", "a b.txt"),
        ("https://a.org/docs/", "docs"),
        ("https://a.org", "a.org"),
        ("http://[", "["),
        ("/", "/"),
    ],
)
def test_a_document_without_a_title_is_named_after_its_file(name: str, title: str) -> None:
    assert of("words", name, "text/plain").title == title


# Markdown.


def test_headings_of_markdown_make_sections_and_not_those_in_code() -> None:
    body = (
        "intro\n\n# One `a` #\none\n\nTwo *b*\nand\n---\n- item\n---\n```sh\n# no\n~~~\n```\n"
        "#### [Deep](http://x.org)\n#no\n\n    # no\n## Three\n- - -\n"
    )
    text = of(body, "/x.md")
    assert sections(text) == [
        ("intro", ()),
        ("# One `a` #", ("One a",)),
        ("Two *b*", ("One a", "Two b and")),
        ("#### Deep", ("One a", "Two b and", "Deep")),
        ("## Three", ("One a", "Three")),
    ]
    assert text.title == "One a"


def test_links_of_markdown_are_their_text_and_code_stays() -> None:
    body = (
        '[a](http://x.org/(y) "t") ![b](c.png) [![d](e.png)](f) [g][h] <http://i.org> `[j](k)` ``[l](m)``\n'
        "[h]: http://x.org\n\n```\n[n](o)\n```\n[p] \\[q](r) [s](<t u>)"
    )
    assert of(body, "/x.md").text == (
        "a b d g http://i.org `[j](k)` ``[l](m)``\n\n```\n[n](o)\n```\n[p] \\[q](r) s"
    )


def test_front_matter_is_metadata_and_no_text() -> None:
    body = "---\ntitle: 'A: b'\nauthor: Ann # c\ndate: 2024-05-01\ntags: [x, y]\nmore:\n  - z\n---\n\nwords\n---\n"
    text = of(body, "/x.md")
    assert (text.title, text.text) == ("A: b", "words\n---")
    assert text.metadata == {"author": "Ann", "published": "2024-05-01"}
    assert of("---\nnot closed\n", "/x.md").text == "---\nnot closed"


# reStructuredText.


def test_headings_of_restructured_text_make_sections_by_their_adornment() -> None:
    body = "=====\nTitle\n=====\n\nOne ``a``\n=========\n\none\n\nTwo\n---\n\n::\n\n  No\n  --\n\n"
    body += "Three\n=====\n\n----\nend"
    text = of(body, "/x.rst")
    assert sections(text) == [
        ("Title", ("Title",)),
        ("One a", ("Title", "One a")),
        ("Two", ("Title", "One a", "Two")),
        ("Three", ("Title", "Three")),
    ]
    assert text.text == "Title\n\nOne a\n\none\n\nTwo\n\n  No\n  --\n\nThree\n\nend"


def test_directives_are_their_content_and_nothing_is_run() -> None:
    body = (
        ".. _label:\n\n.. comment\n   hidden\n\n:Author: Ann\n\n.. note::\n   :class: x\n\n"
        "   See :func:`~a.b.c`, `d <e>`_.\n\n"
        ".. include:: /etc/passwd\n\n.. raw:: html\n\n   <script>\n\n.. code-block:: sh\n\n   `x`\n\n\n   ``y``\n\n"
        ".. function:: f(x)\n\n   Does.\n\n.. toctree::\n   :maxdepth: 1\n\n   other\n\n.. [1] foot\n"
    )
    text = of(body, "/x.rst")
    assert text.text == (
        ":Author: Ann\n\n   See c, d.\n\n   `x`\n\n\n   ``y``\n\nf(x)\n\n   Does.\n\n[1] foot"
    )
    assert text.metadata == {"author": "Ann"}


# A line of JSON Lines.


def test_a_line_has_its_text_in_a_field_and_its_title_in_another() -> None:
    line = {
        "name": "N",
        "title": " A  title ",
        "text": "a\r\nb",
        "year": 2024,
        "tags": ["x"],
        "long": "y" * 1000,
        "none": None,
    }
    text = of(json.dumps(line), "/x.jsonl#3", LINE)
    assert text == Text("a\nb", "A title", "jsonl", metadata={"year": 2024})
    assert of('{"body": "words"}', "/x.jsonl#3", LINE, text_field="body").title == "x.jsonl#3"
    assert of('{"text": "# [a](b)"}', "/x.jsonl#3", LINE).text == "# [a](b)"


def test_any_text_in_a_line_stays_text() -> None:
    text = of(r'{"text": "half \ud800 nul \u0000 left \u202e zero\u200b", "title": "\udfff"}', "/x#1", LINE)
    assert text.text == "half \ud800 nul \0 left \u202e zero\u200b"
    assert text.title == "\udfff"


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"",
        b"\xff",
        b"[]",
        b'"text"',
        b"{}",
        b'{"text": 1}',
        b'{"text": null}',
        b"[" * 100_000,
        b"1" * 10_000,
    ],
)
def test_a_line_without_a_text_is_broken(line: bytes) -> None:
    assert kind_of(line, "/x#1", LINE) == "broken"


def test_a_line_with_an_empty_or_too_long_text_says_so() -> None:
    assert kind_of(b'{"text": " "}', "/x#1", LINE) == "empty"
    assert kind_of(b'{"text": "12345"}', "/x#1", LINE, max_characters=4) == "too large"


# Whatever it is.

names = st.one_of(
    st.sampled_from(["/x", "/x.md", "/x.rst", "/x.txt", "/x.html", "/x.pdf", "/x.py", "https://a.org/x"]),
    st.text(),
)
media_types = st.sampled_from(
    [None, "text/html", "text/markdown", "text/x-rst", "application/pdf", LINE, "TEXT/HTML; x"]
)
charsets = st.one_of(
    st.none(), st.sampled_from(["utf-8", "latin-1", "utf-16", "shift_jis", "hz", "zip", "\0"]), st.text()
)
MARKUP = [
    "#",
    "=",
    "-",
    "`",
    "*",
    ".. ",
    "::",
    "[",
    "](",
    ")",
    "<p>",
    "<b",
    ">",
    "&lt;",
    "---\n",
    ": ",
    "\n",
    "  ",
    "é",
    "\0",
    "\ud800",
]
bodies = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.one_of(st.sampled_from(MARKUP), st.text("ab\n ", max_size=5)), max_size=60).map(
        lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
    ),
    st.binary(max_size=200).map(lambda data: b"%PDF-1.7\n" + data),
    st.text(max_size=50).map(lambda text: json.dumps({"text": text}).encode()),
)


@settings(max_examples=500)
@given(bodies, names, media_types, charsets)
def test_any_bytes_give_a_text_or_a_cause(
    body: bytes, name: str, media_type: str | None, charset: str | None
) -> None:
    kind = ""
    try:
        text = extract(Content(body, "", media_type, charset), name, max_characters=250)
    except SourceFailed as failure:
        kind, text = failure.kind, Text("words", "title", "text")
    assert kind in {"", "unknown format", "broken", "encrypted", "empty", "too large"}
    assert text.text.strip()
    assert len(text.text) <= 250
    assert text.format in {"html", "markdown", "rst", "text", "pdf", "jsonl"}
    assert len(text.title) <= 200
    assert "\n" not in text.title
    offsets = [mark.offset for mark in text.marks]
    assert offsets == sorted(set(offsets))
    assert offsets[0] == 0
    assert offsets[-1] <= len(text.text)
    json.dumps(dict(text.metadata), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", "# a" + " " * 50_000 + "b"),
        ("a.md", "# a #" + " " * 50_000 + "#b"),
        ("a.md", "---\na: b" + " " * 50_000 + "c\n---\ntext"),
        ("a.rst", "`" * 1_000_000 + "a"),
    ],
)
def test_spaces_and_signs_without_end_take_no_time(name: str, text: str) -> None:
    started = time.process_time()
    of(text, name)
    # The first three took 6 seconds and more, in which no other thread ran.
    assert time.process_time() - started < 2


def test_what_closes_a_heading_is_not_part_of_it() -> None:
    text = of("# One ##\n\n## C#\n\n### a # b\n\n## #\n\n## Two\t#\t\n", "a.md")
    assert [mark.section[-1] for mark in text.marks] == ["One", "C#", "a # b", "Two"]


def test_links_of_a_long_block_are_their_text_wherever_it_is_cut() -> None:
    text = of("[word](https://example.org/a)\n" * 10_000, "a.md").text
    assert text == "\n".join(["word"] * 10_000)


def test_headings_without_number_make_no_marks_without_number() -> None:
    text = of("# h\n" * 150_000, "a.md")
    assert len(text.marks) < 110_000
    assert text.text.count("h") == 150_000
