"""PDF to text, page by page, by PDFium.

PDFium is one for the process and not made for threads: a lock lets one document in at a time. All that belongs to a
document is closed before the lock is let go of, since the collector would close it in any thread. Each call of it is
a foreign one, during which other threads run.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Iterator
from ctypes import byref, c_double
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from unwait.documents.model import SourceFailed, Text
from unwait.documents.plain import Outline, check_length, file_name, shortened

try:
    import pypdfium2
    import pypdfium2.raw as pdfium
except ImportError as error:  # pragma: no cover
    raise ImportError('PDF needs pypdfium2: pip install "unwait[documents]"') from error

_one_at_a_time = threading.Lock()

_MOST_PAGES = 100_000
_MOST_BOOKMARKS = 10_000
_FEW = 10  # lines, too few to tell how far apart those of a paragraph are
_LOOKED_FOR = 100  # bookmarks of one page whose words are looked for on it
_HYPHEN = "\ufffe"  # PDFium's own, where it joined a word that was divided at the end of a line
_LINE_END = re.compile(f"(?<=\n)|(?<={_HYPHEN})")
# PDFium makes objects of 100 times the size of what it decompresses, and cannot be stopped.
_LARGEST_STREAM = 32 << 20  # bytes, decompressed
_SUSPICIOUS = 4 << 20  # bytes; no page that a person made has so many in a hundredth of the room
_HIGHEST_RATIO = 100
_STREAM = re.compile(rb"\bstream\r?\n")
_STEP = 1 << 16  # bytes
_DATE = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?")
_BULLET = re.compile(r"[•‣◦▪●○■\u2013*-] ")
_NUMBERING = r"(?:[A-Z]?[\d.]{0,20}|Chapter \d{1,4}[.:]?) ?"


@dataclass(slots=True)
class _Line:
    """A line of a page, where it begins and ends, in points from the lower left corner, and its size."""

    text: str
    left: float
    right: float
    height: float
    size: float


def pdf(body: bytes, name: str, *, max_characters: int) -> Text:
    """The text of a PDF, with its pages, the sections of its outline, and its title and author if it names them.

    Raises SourceFailed: "encrypted" (it asks for a password), "broken", "empty" (scanned pages), "too large".
    """
    _refuse_bombs(body)
    with _one_at_a_time:
        try:
            document = pypdfium2.PdfDocument(body)
        except pypdfium2.PdfiumError as error:
            raise _unreadable(error) from None
        try:
            return _text(document, name, max_characters)
        finally:
            document.close()


def _refuse_bombs(body: bytes) -> None:
    """Raise SourceFailed if a stream that is no image becomes far too large when it is decompressed."""
    left = 4 * len(body)  # what is no stream may look like many that overlap
    for match in _STREAM.finditer(body):
        start = match.end()
        if (
            body[start : start + 1] != b"\x78"
            or b"/Image" in body[max(0, match.start() - 400) : match.start()]
        ):
            continue
        read, size = _unpacked(body, start)
        left -= read
        if size > _LARGEST_STREAM or (size > _SUSPICIOUS and size > _HIGHEST_RATIO * read) or left < 0:
            raise SourceFailed("a page of it is too large when it is decompressed", kind="too large")


def _unpacked(body: bytes, start: int) -> tuple[int, int]:
    """How many bytes of the stream that begins here were read, and how many they become; no more than is too many."""
    unpack = zlib.decompressobj()
    read = size = 0
    while not unpack.eof and size <= _LARGEST_STREAM and (rest := body[start + read : start + read + _STEP]):
        length = len(rest)
        while rest and not unpack.eof:
            try:
                size += len(unpack.decompress(rest, _STEP))
            except zlib.error:
                return read + length, size
            rest = unpack.unconsumed_tail
            if size > _LARGEST_STREAM:
                break
        read += length - len(rest) - len(unpack.unused_data)
    return read, size


def _unreadable(error: pypdfium2.PdfiumError) -> SourceFailed:
    if error.err_code in (pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY):
        return SourceFailed("the PDF is encrypted; save it without a password first", kind="encrypted")
    if error.err_code == pdfium.FPDF_ERR_SUCCESS:
        return SourceFailed("the PDF has no pages", kind="broken")
    return SourceFailed("the PDF is damaged or cut off", kind="broken")


def _text(document: Any, name: str, max_characters: int) -> Text:
    pages = len(document)
    if pages > _MOST_PAGES:
        raise SourceFailed(f"the PDF has {pages:,} pages; split it into smaller documents", kind="too large")
    bookmarks = _bookmarks(document)
    outline = Outline()
    out: list[str] = []
    length = broken = 0
    headline = ""
    for index in range(pages):
        try:
            lines = _lines(document, index, max_characters - length)
        except pypdfium2.PdfiumError:
            broken += 1
            continue
        if text := "\n\n".join(_blocks(lines)):
            if out:
                out.append("\n\n")
                length += 2
            else:
                headline = _headline(lines)
            outline.page(length, index + 1)
            _sections(outline, bookmarks.get(index, []), text, length, index + 1)
            out.append(text)
            length += len(text)
            check_length(length, max_characters)
    if not length:
        if broken:
            raise SourceFailed(f"none of the PDF's {pages:,} pages can be read: it is damaged", kind="broken")
        raise SourceFailed(
            f"the PDF's {pages:,} pages have no text; if they are scanned, have their text recognised first",
            kind="empty",
        )
    about = document.get_metadata_dict(skip_empty=True)
    found = {"author": about.get("Author"), "description": about.get("Subject")}
    metadata: dict[str, Any] = {field: shortened(value) for field, value in found.items() if value}
    if match := _DATE.match(about.get("CreationDate", "")):
        metadata["published"] = "-".join(part for part in match.groups() if part)
    if broken:
        metadata["unreadable_pages"] = broken
    title = shortened(about.get("Title", "")) or headline or outline.first or file_name(name)
    return Text("".join(out), title, "pdf", outline.marks(), metadata)


def _headline(lines: list[_Line]) -> str:
    """What is written largest on the first page, if something is; it may take several lines."""
    largest = max(line.size for line in lines)
    if largest < 1.2 * median(line.size for line in lines):
        return ""
    large = [line.size > 0.95 * largest for line in lines]
    first = large.index(True)
    end = first + [*large[first:], False].index(False)
    return shortened(" ".join(line.text for line in lines[first:end]).replace(_HYPHEN, ""))


def _bookmarks(document: Any) -> dict[int, list[tuple[int, str]]]:
    """Level, from 1, and title of the outline's entries, by the page they lead to."""
    found: dict[int, list[tuple[int, str]]] = {}
    for count, bookmark in enumerate(document.get_toc()):
        if count == _MOST_BOOKMARKS:
            break
        target = bookmark.get_dest()
        page = target.get_index() if target is not None else None
        if page is not None and (title := shortened(bookmark.get_title())):
            found.setdefault(page, []).append((bookmark.level + 1, title))
    return found


def _sections(outline: Outline, bookmarks: list[tuple[int, str]], text: str, offset: int, page: int) -> None:
    """Mark the sections that begin on a page: where their title stands in a line of its own, or stands at all."""
    position = 0
    for level, title in bookmarks[:_LOOKED_FOR]:
        words = r"\s+".join(map(re.escape, title.split()))
        alone = re.compile(rf"^{_NUMBERING}{words}[ .\d]{{0,20}}$", re.MULTILINE)
        if match := alone.search(text, position) or re.compile(words).search(text, position):
            position = match.start()
        outline.heading(offset + position, level, title, page)
    for level, title in bookmarks[_LOOKED_FOR:]:
        outline.heading(offset + position, level, title, page)


def _lines(document: Any, index: int, most: int) -> list[_Line]:
    """The lines of a page in the order of its content. Raises PdfiumError for a page that cannot be read."""
    page = document[index]
    try:
        text_page = page.get_textpage()
        try:
            count = text_page.count_chars()
            check_length(count, most)
            text = text_page.get_text_range()
            # Else a character of the text is not the character of the page by that number.
            raw = text_page.raw if len(text) == count else None
            return list(_placed(text, raw))
        finally:
            text_page.close()
    finally:
        page.close()


def _placed(text: str, raw: Any) -> Iterator[_Line]:
    x, y = c_double(), c_double()
    position = 0
    for number, line in enumerate(_LINE_END.split(text)):
        words = line.strip()
        if words:
            first = position + line.index(words[0])
            if raw is None:
                left, right, height, size = 0.0, float(len(words)), -1.0 * number, 1.0
            else:
                last = first + len(words) - 1
                pdfium.FPDFText_GetCharOrigin(raw, last, byref(x), byref(y))
                right = x.value
                pdfium.FPDFText_GetCharOrigin(raw, first, byref(x), byref(y))
                left, height = x.value, y.value
                size = float(pdfium.FPDFText_GetFontSize(raw, first))
            yield _Line(words, left, right, height, size)
        position += len(line)


def _blocks(lines: list[_Line]) -> Iterator[str]:
    """Paragraphs: lines that follow each other closely, in one size. What was broken though it had room stays so."""
    if not lines:
        return
    steps = [
        round(above.height - below.height, 1)
        for above, below in pairwise(lines)
        if above.height > below.height
    ]
    step = median(steps) if steps else 0.0
    if len(steps) < _FEW:
        step = min(step, 1.2 * lines[0].size)
    edges = _edges(lines)
    block = [lines[0].text]
    for above, below, edge in zip(lines, lines[1:], edges, strict=False):
        down = above.height - below.height
        word = below.text.partition(" ")[0]
        had_room = edge - above.right > (len(word) + 1.5) * _width(above)
        if down < -step:  # the top of the next column
            apart = had_room or above.text.endswith((".", "!", "?", ":"))
        else:
            goes_on = below.text[0].islower() and down < 1.7 * step
            apart = (down > 1.3 * step and not goes_on) or abs(above.size - below.size) > 0.1 * above.size
        if apart:
            yield "".join(block).replace(_HYPHEN, "-")
            block = []
        elif above.text.endswith((_HYPHEN, "\u00ad")):
            block[-1] = block[-1][:-1]
        else:
            block.append("\n" if had_room or _BULLET.match(below.text) else " ")
        block.append(below.text)
    yield "".join(block).replace(_HYPHEN, "-")


def _width(line: _Line) -> float:
    """About how wide a character of the line is."""
    return (line.right - line.left) / max(len(line.text) - 1, 1)


def _edges(lines: list[_Line]) -> list[float]:
    """For each line, how far the lines of its column reach to the right."""
    edges: list[float] = []
    column = 0
    for number in range(1, len(lines) + 1):
        if number == len(lines) or lines[number].height > lines[number - 1].height + lines[number].size:
            edges += [max(line.right for line in lines[column:number])] * (number - column)
            column = number
    return edges
