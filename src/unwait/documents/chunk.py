"""Text cut into chunks: by structure first, by size second.

A chunk belongs to one section and one page. Only what is too small to be found by itself (below a quarter of the
size) goes together with its neighbour, where the two have a parent in common and fit: their chunk has the path that
they share and the page on which it begins. What is too large is cut where semantic-text-splitter finds the best
place: between paragraphs, lines, sentences, words, in this order; Markdown between its blocks.

So an edit changes the chunks of its own section and, where that one or the next is tiny, of the neighbour it goes
with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from unwait.documents.model import Chunk, Text, digest

try:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter
except ImportError as error:
    raise ImportError(
        'chunks need semantic-text-splitter: pip install "unwait[documents]"', name=error.name
    ) from error

VERSION = "1"

WINDOW = 32
"""Chunks that the splitter sees at a time: it looks ahead to the end, again for each chunk."""

HALF_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class _Section:
    start: int
    end: int
    path: tuple[str, ...]
    page: int | None

    @property
    def length(self) -> int:
        return self.end - self.start


def chunks(uri: str, text: Text, *, size: int = 1000, overlap: int = 0, version: str) -> list[Chunk]:
    """The chunks of a document, in order; together they are its text.

    No chunk has more than `size` characters. Each but the first of a section begins with the last `overlap`
    characters of what is before it in its section. A chunk holds nothing but whitespace only where there is more of
    it than fits to its neighbours. `uri` and `version` go into the ids. Raises ValueError for a size below 1 and an
    overlap below 0 or not below the size.
    """
    if size < 1:
        raise ValueError(f"the size of chunks must be at least 1 character, not {size}")
    if not 0 <= overlap < size:
        raise ValueError(
            f"the overlap must be at least 0 and below the size of chunks ({size}), not {overlap}"
        )
    # One character for one, so that all offsets hold: the splitter takes nothing that is not UTF-8.
    whole = HALF_CHARACTER.sub("\ufffd", text.text)
    cutter = _Cutter(size - overlap, markdown=text.format == "markdown")
    made: list[Chunk] = []
    for section in _merged(_sections(text, whole), size):
        pieces = [(section.start, section.end)]
        if section.length > size:
            pieces = cutter.cut(whole, section.start, section.end)
        for first, end in pieces:
            start = max(section.start, first - overlap)
            words, position = text.text[start:end], len(made)
            name = digest(uri, str(position), words, version)
            made.append(Chunk(name, position, start, end, words, section.path, section.page))
    return made


def _sections(text: Text, whole: str) -> Iterator[_Section]:
    """The sections that the marks make, none of them empty. Blank ones belong to the one before, or else the next."""
    current = _Section(0, 0, (), None)
    blank = True
    ends = chain((mark.offset for mark in islice(text.marks, 1, None)), (len(whole),))
    for mark, end in zip(text.marks, ends, strict=True):
        # Marks in one place: the last of them counts.
        if end <= current.end:
            continue
        same = (mark.section, mark.page) == (current.path, current.page)
        nothing = whole[current.end : end].isspace()
        if blank or same or nothing:
            if blank:
                current.path, current.page = mark.section, mark.page
            current.end = end
            blank = blank and nothing
        else:
            yield current
            current = _Section(current.end, end, mark.section, mark.page)
    if current.length:
        yield current


def _merged(sections: Iterable[_Section], size: int) -> Iterator[_Section]:
    """The sections, with tiny ones joined to what follows, or, if that does not do, to what is before."""
    small = size / 4
    before: _Section | None = None
    current: _Section | None = None
    for section in sections:
        if current is None:
            current = section
        elif current.length < small and (joined := _joined(current, section, size)):
            current = joined
        elif before and current.length < small and (joined := _joined(before, current, size)):
            before, current = joined, section
        else:
            if before:
                yield before
            before, current = current, section
    if current is None:
        return
    if before and current.length < small and (joined := _joined(before, current, size)):
        before, current = joined, None
    if before:
        yield before
    if current:
        yield current


def _joined(one: _Section, two: _Section, size: int) -> _Section | None:
    """Both as one, if they fit and are siblings, or one is the other's parent or the parent's sibling."""
    if one.length + two.length > size:
        return None
    shared = 0
    for a, b in zip(one.path, two.path, strict=False):
        if a != b:
            break
        shared += 1
    if shared < min(len(one.path), len(two.path)) - 1 or (
        not shared and max(len(one.path), len(two.path)) > 1
    ):
        return None
    return _Section(one.start, two.end, one.path[:shared], one.page)


class _Cutter:
    """Cuts sections that are too large, into pieces of at most `most` characters."""

    def __init__(self, most: int, *, markdown: bool) -> None:
        self._most = most
        self._tiny = most / 4
        self._make = MarkdownSplitter if markdown else TextSplitter
        self._splitter = self._make(most, trim=False)

    def cut(self, whole: str, start: int, end: int) -> list[tuple[int, int]]:
        """Where the pieces begin and end.

        What is blank joins its neighbour if the two fit. So does what is tiny (a heading before a long paragraph, the
        rest after the last cut), or else it takes half of its neighbour.
        """
        pieces: list[tuple[int, int]] = []
        blank = False
        for length in self._lengths(whole, start, end):
            end = start + length
            nothing = whole[start:end].isspace()
            if pieces:
                first = pieces[-1][0]
                tiny = min(start - first, length) < self._tiny
                if (tiny or blank or nothing) and end - first <= self._most:
                    pieces[-1] = first, end
                    blank = blank and nothing
                    start = end
                    continue
                if start - first < self._tiny and (middle := self._middle(whole, start, end)):
                    pieces[-1] = first, middle
                    pieces.append((middle, end))
                    blank, start = False, end
                    continue
            pieces.append((start, end))
            blank, start = nothing, end
        if len(pieces) > 1 and pieces[-1][1] - pieces[-1][0] < self._tiny:
            first, start = pieces[-2]
            if middle := self._middle(whole, first, start):
                pieces[-2:] = (first, middle), (middle, pieces[-1][1])
        return pieces

    def _middle(self, whole: str, start: int, end: int) -> int | None:
        """A good place to cut the piece, so that something tiny fits to either part; None if there is none."""
        length = end - start
        most = int(self._most - self._tiny)
        least = max(length - most, self._tiny)
        half = (length + 1) // 2
        if half > most or not most:
            return None
        halves = self._make((half, most), trim=False).chunks(whole[start:end])
        middle = len(halves[0])
        if not least <= middle <= length - self._tiny:
            return None
        if halves[0].isspace() or whole[start + middle : end].isspace():
            return None
        return start + middle

    def _lengths(self, whole: str, start: int, end: int) -> Iterator[int]:
        while end - start > self._most * WINDOW:
            *pieces, _ = self._splitter.chunks(whole[start : start + self._most * WINDOW])
            # The last one ends where the window does; it is cut again, with what follows.
            for piece in pieces:
                yield len(piece)
            start += sum(map(len, pieces))
        for piece in self._splitter.chunks(whole[start:end]):
            yield len(piece)
