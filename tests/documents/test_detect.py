"""What bytes are: formats that are refused by name, charsets whatever is said of them, markup."""

from __future__ import annotations

import contextlib
import io
import time
import zipfile
import zlib

import pytest

from unwait.documents.extract import extract
from unwait.documents.model import Content, SourceFailed, Text


def of(
    body: bytes | str, name: str = "/docs/page", media_type: str | None = None, charset: str | None = None
) -> Text:
    return extract(Content(body.encode() if isinstance(body, str) else body, "", media_type, charset), name)


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "content " * 100)
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (zipped("a.txt"), "ZIP"),
        (zipped("[Content_Types].xml", "word/document.xml"), "Word"),
        (zipped("[Content_Types].xml", "xl/workbook.xml"), "Excel"),
        (b"\x1f\x8b\x08\x00" + zlib.compress(b"text"), "gzip"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "PNG"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "JPEG"),
        (b"GIF89a\x01\x00\x01\x00", "GIF"),
        (b"RIFF\x24\x00\x00\x00WEBPVP8 \x00", "WebP"),
        (b"\x7fELF\x02\x01\x01" + bytes(9), "ELF"),
        (b"MZ\x90\x00\x03\x00\x00\x00", "Windows"),
        (b"SQLite format 3\x00\x10\x00", "SQLite"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(8), "Office"),
        (b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00", "MPEG-4"),
        (rb"{\rtf1\ansi text}", "RTF"),
        (b"%!PS-Adobe-3.0\n", "PostScript"),
        (bytes(range(256)) * 10, "neither text"),
        (bytes(5000), "neither text"),
    ],
)
def test_a_format_without_text_is_refused_by_its_name(body: bytes, what: str) -> None:
    with pytest.raises(SourceFailed, match=what) as caught:
        of(body, "/docs/page.txt", "text/plain")
    assert caught.value.kind == "unknown format"


@pytest.mark.parametrize(
    "text", ["BMW and others", "MZ is a signature", "GIF89a is a format", "ID3 tags, explained"]
)
def test_text_that_begins_like_another_format_is_text(text: str) -> None:
    assert of(text).text == text


WORDS = "Größe und Maß: ein Käse für 5 €, „naïve“ Façade"


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8", None),
        ("utf-8-sig", "iso-8859-1"),
        ("utf-8", "iso-8859-1"),
        ("utf-8", "no-such-charset"),
        ("utf-8", "idna"),
        ("utf-8", "zip"),
        ("cp1252", None),
        ("cp1252", "utf-8"),
        ("cp1252", "iso-8859-1"),
        ("utf-16", None),
        ("utf-16-le", None),
        ("utf-16-be", "utf-8"),
        ("utf-32", None),
    ],
)
def test_a_text_is_readable_whatever_is_said_of_its_charset(encoding: str, said: str | None) -> None:
    assert of(WORDS.encode(encoding), charset=said).text == WORDS


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("koi8-r", "Съешь ещё этих мягких французских булок"),
        ("shift_jis", "色は匂へど散りぬるを我が世誰ぞ常ならむ"),
        ("gb2312", "天地玄黄宇宙洪荒日月盈昃辰宿列张"),
        ("iso-2022-jp", "色は匂へど散りぬるを"),
        ("euc-kr", "다람쥐 헌 쳇바퀴에 타고파"),
    ],
)
def test_a_declared_charset_is_used_from_the_header_or_the_page_itself(encoding: str, words: str) -> None:
    assert of(words.encode(encoding), charset=encoding).text == words
    page = f'<!doctype html><meta http-equiv="Content-Type" content="text/html; charset={encoding}"><p>{words}</p>'
    assert of(page.encode(encoding)).text == words
    assert of(page.replace("Content-Type", "x").encode(encoding), charset=encoding).text == words


def test_a_broken_character_in_a_long_text_costs_that_character_only() -> None:
    body = (WORDS * 20).encode()
    assert of(body[:2] + b"\xff" + body[2:]).text == f"Gr\ufffd{(WORDS * 20)[2:]}"


def test_nul_bytes_marks_of_direction_and_zero_width_stay_in_a_text() -> None:
    text = "one\0two \u202eright to left\u202c zero\u200bwidth \u2066x\u2069 '; DROP TABLE documents; --"
    assert of(text).text == text


@pytest.mark.parametrize(
    ("body", "name", "media_type", "format_"),
    [
        ("<!DOCTYPE html><p>x", "/a.txt", "text/plain", "html"),
        ("\n<!-- c --><html><p>x", "/a", None, "html"),
        ('<?xml version="1.0"?><!DOCTYPE html><html><p>x</p></html>', "/a", None, "html"),
        ("<p>x</p>", "/a", None, "html"),
        ("<p>x</p>", "/a.html", None, "html"),
        ("some words <b>here</b>", "https://a.org/x", "text/html", "html"),
        ("just words", "https://a.org/x", "text/html", "text"),
        ("# words", "https://a.org/x.md", "text/html", "markdown"),
        ('<h1 align="center">x</h1>\n\n# words', "/README.md", None, "markdown"),
        ("# words", "/x", "text/markdown", "markdown"),
        ("# words\n\nand [more](http://x.org)", "/x.txt", None, "markdown"),
        ("words\n=====\n\n.. note:: x\n", "/x.txt", None, "rst"),
        ("words", "/x.rst", None, "rst"),
        ("words", "/x.rst.txt", None, "rst"),
        ("# comment\nimport x  # [a](b) **c**\n", "/x.py", None, "text"),
        ("#!/bin/sh\n# comment\n# [a](b)\n", "/x", None, "text"),
        ('<?xml version="1.0"?><data>1</data>', "/x.xml", "application/xml", "text"),
        ("if a < b and c > d: pass", "/x", None, "text"),
    ],
)
def test_the_format_is_what_the_content_then_its_place_says(
    body: str, name: str, media_type: str | None, format_: str
) -> None:
    assert of(body, name, media_type).format == format_


def test_a_page_in_place_of_a_pdf_is_a_page_and_anything_else_is_broken() -> None:
    assert of("<!doctype html><p>Please log in", "/x.pdf", "application/pdf").format == "html"
    with pytest.raises(SourceFailed) as caught:
        of(b"\x00\x01\x02\xff\xfe rubbish", "/x.pdf")
    assert caught.value.kind == "broken"


@pytest.mark.parametrize("words", ["BMW fährt", "MZ baute Motorräder", "ID3 è un'etichetta", "BZh für Bern"])
def test_a_text_in_an_old_encoding_may_begin_with_the_letters_of_another_format(words: str) -> None:
    assert of(words.encode("cp1252"), "/a/notes.txt").text == words


def test_half_characters_and_a_cut_off_end_leave_the_rest_of_utf8_as_it_is() -> None:
    half = "Grüße \ud800 und \u202e mehr Wörter"
    assert of(half.encode("utf-8", "surrogatepass")).text == half.replace("\ud800", "\ufffd")
    assert of(b"caf\xc3\xa9 \xed\xa0\xbd\xed\xb8\x80").text == "café 😀"
    assert of("ein schönes Wort …".encode()[:-1]).text == "ein schönes Wort \ufffd"
    assert of(b"caf\xe9").text == "café"


@pytest.mark.parametrize(
    "text",
    ["<!-- -->" * 10_000, "<!-- -->" * 30 + "a", "a" + "\n" * 50_000 + "b", "<a " * 200_000],
    ids=["comments", "few comments", "empty lines", "tags without an end"],
)
@pytest.mark.parametrize("name", ["/a/b", "/a/b.html"])
def test_no_text_takes_long_to_look_at(text: str, name: str) -> None:
    # Some took seconds, in which no other thread ran; some longer than anybody would wait.
    started = time.process_time()
    with contextlib.suppress(SourceFailed):
        of(text, name)
    assert time.process_time() - started < 2
