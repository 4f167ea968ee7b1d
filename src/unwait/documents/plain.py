"""Plain text as it is written, and what the texts of all formats have in common: a title, the marks of sections."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote

from unwait.documents.model import Mark, SourceFailed, Text

LONGEST_TITLE = 200  # characters of a title, and of a heading in a section's path
_MOST_MARKS = 100_000  # in one document, each of which takes more memory than its heading
_STEP = 1 << 16  # characters


class Outline:
    """Headings as they come, in the order of the text, made into marks."""

    def __init__(self) -> None:
        self.first = ""
        self._open: list[tuple[int, str]] = []
        self._marks = [Mark(0)]

    def heading(self, offset: int, level: int, title: str, page: int | None = None) -> None:
        """From here on the text is below this heading, which ends all of its level (1 is the outermost) and deeper."""
        if len(self._marks) > _MOST_MARKS:
            return
        title = shortened(title)
        self.first = self.first or title
        while self._open and self._open[-1][0] >= level:
            self._open.pop()
        self._open.append((level, title))
        self._mark(offset, page)

    def page(self, offset: int, page: int) -> None:
        """From here on the text is on this page, in the section it was in."""
        self._mark(offset, page)

    def _mark(self, offset: int, page: int | None) -> None:
        if self._marks[-1].offset >= offset:
            self._marks.pop()
        self._marks.append(Mark(offset, tuple(title for _, title in self._open), page))

    def marks(self) -> tuple[Mark, ...]:
        """Sorted by offset; the first is at 0."""
        return tuple(self._marks)


def shortened(title: str) -> str:
    """The title on one line, cut to a length that can be shown."""
    if len(title) > 10 * LONGEST_TITLE:
        title = title[: 10 * LONGEST_TITLE]
    title = " ".join(title.split())
    return title if len(title) <= LONGEST_TITLE else title[: LONGEST_TITLE - 1].rstrip() + "…"


def file_name(name: str) -> str:
    """The last part of a path or a URL, for a document without a title; of a URL without a path, the host."""
    if "://" in name:
        name = unquote(name.partition("://")[2].partition("?")[0])
    return shortened(name.rstrip("/").rpartition("/")[2] or name)


def suffix(name: str) -> str:
    """The suffix of the file's name, in lower case, with its dot; of `page.rst.txt` it is `.rst`."""
    stem, dot, last = file_name(name).partition("#")[0].lower().rpartition(".")
    if not dot:
        return ""
    if last == "txt" and (inner := suffix(stem)) in (".md", ".markdown", ".rst"):
        return inner
    return dot + last


def check_length(length: int, max_characters: int) -> None:
    """Raise SourceFailed for a text of more than `max_characters`."""
    if length > max_characters:
        raise SourceFailed(
            f"its text has more than {max_characters:,} characters; split it into smaller documents",
            kind="too large",
        )


def lines_of(text: str) -> str:
    """The text with every line break as a newline, without a line break at either end."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip("\n")


def in_steps(change: Callable[[str], str], text: str) -> str:
    """The text, changed piece by piece, at ends of lines if there are any: a pattern at work lets no thread run."""
    pieces, start = [], 0
    while len(text) - start > _STEP:
        end = text.rfind("\n", start, start + _STEP) + 1 or start + _STEP
        pieces.append(change(text[start:end]))
        start = end
    return "".join((*pieces, change(text[start:])))


def plain(text: str, name: str) -> Text:
    """Text, source code, configuration: as it is."""
    return Text(lines_of(text), file_name(name), "text")
