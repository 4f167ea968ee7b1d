"""Markdown: its headings, its front matter, links as their text; otherwise as it is written."""

from __future__ import annotations

import re
from typing import Any

from unwait.documents.model import Text
from unwait.documents.plain import Outline, file_name, in_steps, lines_of, shortened

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^\n]*)")
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*))?$")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
# What begins another block than a paragraph, whose last line an underline makes a heading.
_NO_PARAGRAPH = re.compile(r" {0,3}(?:[>#|]|[-*_]{3}|[-+*][ \t]|\d{1,9}[.)][ \t]|<)| {4}|\t")
_DEFINITION = re.compile(r" {0,3}\[[^\[\]\n]{1,500}\]:[ \t]*\S{1,2000}(?:[ \t]+[\"'(][^\n]{0,500})?[ \t]*$")

# Code is left alone: the first alternative matches it, and nothing in it is a link.
_CODE = r"(?<!`)`++[^`\n]{1,2000}`++"
_TARGET = (
    r"\((?:<[^<>\n]{0,2000}>|(?:[^()\s<]|\([^()\s]{0,500}\)){0,2000})"
    r"(?:\s{1,9}[\"'(][^\"'()\n]{0,500}[\"')])?\s{0,9}\)"
)
_IMAGE = re.compile(rf"{_CODE}|!\[([^\[\]]{{0,1000}})\](?:{_TARGET}|\[[^\[\]]{{0,500}}\])")
_LINK = re.compile(
    rf"{_CODE}|(?<!\\)\[((?:[^\[\]`]|`[^`\n]{{1,500}}`){{0,1000}})\](?:{_TARGET}|\[[^\[\]]{{0,500}}\])"
)
_ADDRESS = re.compile(
    rf"{_CODE}|<([a-zA-Z][a-zA-Z0-9+.-]{{1,30}}:[^\s<>]{{1,2000}}|[\w.+-]{{1,64}}@[\w.-]{{1,200}})>"
)
_EMPHASIS = re.compile(r"(?<![\w\\])([*_]{1,3})(?=\S)([^*_\n]{1,300})(?<=\S)\1(?!\w)")

_FRONT = re.compile(r"---[ \t]*\n((?:[^\n]*\n){0,500}?)(?:---|\.\.\.)[ \t]*(?:\n|\Z)")
_PAIR = re.compile(r"([A-Za-z_][\w .-]{0,60}?)[ \t]*+:(?:[ \t]+(.*))?$")
_SAME = {"date": "published", "lang": "language", "summary": "description"}
_LONGEST_VALUE = 2000  # characters


def markdown(text: str, name: str) -> Text:
    """The text with its headings as sections; plain values of YAML front matter are metadata and not text."""
    text = lines_of(text)
    metadata: dict[str, Any] = {}
    if match := _FRONT.match(text):
        metadata = _front_matter(match[1])
        text = text[match.end() :]
    body, outline = _body(text)
    title = str(metadata.pop("title", "")) or outline.first or file_name(name)
    return Text(body, shortened(title), "markdown", outline.marks(), metadata)


def _body(text: str) -> tuple[str, Outline]:
    outline = Outline()
    out: list[str] = []  # blocks of lines
    length = 0
    lines: list[str] = []  # that have not been written yet
    fence = ""

    def write(*, verbatim: bool = False) -> None:
        nonlocal length
        if lines:
            block = "\n".join(lines) + "\n"
            out.append(block if verbatim else in_steps(unlinked, block))
            length += len(out[-1])
            lines.clear()

    for line in text.split("\n"):
        match = _FENCE.match(line)
        if fence:
            lines.append(line)
            if match and match[1].startswith(fence) and not match[2].strip():
                fence = ""
                write(verbatim=True)
        elif match and not (match[1][0] == "`" and "`" in match[2]):
            write()
            fence = match[1]
            lines.append(line)
        elif match := _ATX.match(line):
            write()
            if heading := _words(_unclosed(match[2] or "")):
                outline.heading(length, len(match[1]), heading)
            lines.append(line)
            write()
        elif (match := _SETEXT.match(line)) and (start := _paragraph(lines)) is not None:
            above = lines[start:]
            del lines[start:]
            write()
            if heading := _words(" ".join(above)):
                outline.heading(length, 1 if match[1][0] == "=" else 2, heading)
            lines += (*above, line)
            write()
        elif not _DEFINITION.match(line) and (length or lines or line.strip()):
            lines.append(line)
    write(verbatim=bool(fence))
    return "".join(out).rstrip("\n"), outline


def _paragraph(lines: list[str]) -> int | None:
    """Where the paragraph begins that the last line belongs to; None if it belongs to none."""
    start = len(lines)
    while start and lines[start - 1].strip() and not _NO_PARAGRAPH.match(lines[start - 1]):
        start -= 1
    return start if start < len(lines) else None


def unlinked(text: str) -> str:
    """The text with links and images as their words; what is code stays."""
    if "](" in text or "][" in text:
        text = _IMAGE.sub(_inner, text)
        text = _LINK.sub(_inner, text)
    if "<" in text:
        text = _ADDRESS.sub(_inner, text)
    return text


def _inner(match: re.Match[str]) -> str:
    return match[0] if match[1] is None else match[1]


def _unclosed(heading: str) -> str:
    """A heading without the `#` that may end it."""
    heading = heading.strip()
    words = heading.rstrip("#")
    return heading if words[-1:].strip() else words


def _words(heading: str) -> str:
    """A heading without its markup."""
    return _EMPHASIS.sub(r"\2", unlinked(heading)).replace("`", "").strip()


def _front_matter(text: str) -> dict[str, Any]:
    """The lines `key: value` that are not indented; lists and nested values are left out."""
    found: dict[str, Any] = {}
    for line in text.split("\n"):
        if (match := _PAIR.match(line)) is None or not (value := (match[2] or "").strip()):
            continue
        if value[0] in "\"'":
            quote, value = value[0], value[1:]
            value, closed, _ = value.partition(quote)
            if not closed:
                continue
        elif value[0] in "[{|>&*!":
            continue
        else:
            value = value.partition(" #")[0].strip()
        if value and len(value) <= _LONGEST_VALUE:
            key = match[1].strip().lower()
            found[_SAME.get(key, key)] = value
    return found
