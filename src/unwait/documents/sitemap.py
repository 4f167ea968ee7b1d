"""Sitemaps: XML lists of pages, and lists of such lists, also compressed. Blocks, and runs in threads.

The XML is foreign: a document type is refused before any of its entities is read, a name or a text that does not end
is refused before it is searched for its end again and again, and what is decompressed is bounded.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple
from xml.parsers import expat

from unwait.documents.files import opened, too_large, unreadable
from unwait.documents.model import SourceFailed

BLOCK = 1 << 16
_ROOTS = {"urlset": "url", "sitemapindex": "sitemap"}
_LONGEST = 8192  # characters of an address
_LARGEST_TOKEN = 1 << 20
_HEAD = 1 << 18  # bytes in which the first element is looked for


class Entry(NamedTuple):
    """An address in a sitemap, of a page or of another sitemap."""

    location: str
    nested: bool


class _Refused(Exception):
    pass


class _Known(Exception):
    """The first element is there."""


def may_be(name: str) -> bool:
    """Whether a file or a page of this name may be a sitemap, so that it is worth a look at its content."""
    name = name.lower()
    if name.endswith((".xml", ".xml.gz")):
        return True
    return name.startswith("sitemap") and not name.endswith((".html", ".htm", ".txt", ".md"))


def blocks_of(content: bytes) -> Iterator[bytes]:
    """The content piece by piece."""
    view = memoryview(content)
    for start in range(0, len(view), BLOCK):
        yield bytes(view[start : start + BLOCK])


def blocks_in(path: str) -> Iterator[bytes]:
    """The content of a file piece by piece. Raises SourceFailed."""
    with opened(path) as file:
        try:
            while block := file.read(BLOCK):
                yield block
        except OSError as error:
            raise unreadable(error) from None


def is_sitemap(blocks: Iterable[bytes]) -> bool:
    """Whether the content is a sitemap or an index of sitemaps, by the name of its first element."""
    found = False

    def known(name: str, *_: object) -> None:
        nonlocal found
        found = name.rpartition(" ")[2] in _ROOTS
        raise _Known

    parser = expat.ParserCreate(namespace_separator=" ")
    # A document type names the first element; none of what it declares is to be read.
    parser.StartDoctypeDeclHandler = known
    parser.StartElementHandler = known
    read = 0
    try:
        for block in _unpacked(blocks, _HEAD):
            read += len(block)
            parser.Parse(block)
            if read > _HEAD:
                break
    except (_Known, expat.ExpatError, SourceFailed, ValueError, LookupError):
        pass
    return found


def read(blocks: Iterable[bytes], most: int) -> Generator[Entry | SourceFailed | None, None, None]:
    """The addresses of a sitemap whose content is not more than `most` bytes; at the end, what is wrong with it."""
    entries: list[Entry] = []
    # The names of the open elements, no deeper than addresses are.
    path: list[str] = []
    depth = 0
    text: list[str] = []
    length = 0

    def start(name: str, _: object) -> None:
        nonlocal depth, length
        depth += 1
        local = name.rpartition(" ")[2]
        if depth == 1 and local not in _ROOTS:
            raise _Refused("it is not a sitemap: its first element is neither urlset nor sitemapindex")
        if depth <= 3:
            path[depth - 1 :] = [local]
            text.clear()
            length = 0

    def end(_: str) -> None:
        nonlocal depth
        if depth == 3 and path[2] == "loc" and path[1] == _ROOTS[path[0]]:
            location = "".join(text).strip()
            if location:
                entries.append(Entry(location, path[0] == "sitemapindex"))
        depth -= 1

    def characters(data: str) -> None:
        nonlocal length
        if depth == 3 and path[2] == "loc":
            length += len(data)
            if length > _LONGEST:
                raise _Refused(f"an address in it has more than {_LONGEST} characters")
            text.append(data)

    def doctype(*_: object) -> None:
        raise _Refused("it has a document type (<!DOCTYPE), which a sitemap has no use for")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = doctype
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = characters
    fed = 0
    problem = None
    try:
        for block in _unpacked(blocks, most):
            parser.Parse(block)
            fed += len(block)
            yield from entries
            yield None
            entries.clear()
            if fed - max(parser.CurrentByteIndex, 0) > _LARGEST_TOKEN:
                raise _Refused("a tag in it does not end")
        parser.Parse(b"", True)
    except _Refused as refused:
        problem = SourceFailed(f"this sitemap is not read: {refused}", kind="broken")
    except expat.ExpatError as error:
        what = expat.ErrorString(error.code)
        problem = SourceFailed(
            f"this sitemap is not well-formed XML: {what} in line {error.lineno}", kind="broken"
        )
    except (ValueError, LookupError):
        problem = SourceFailed("this sitemap is in an encoding that is not known", kind="broken")
    except SourceFailed as failed:
        problem = failed
    yield from entries
    if problem is not None:
        yield problem


def _unpacked(blocks: Iterable[bytes], most: int) -> Iterator[bytes]:
    """The blocks, decompressed if they are gzip. Raises SourceFailed for more than `most` bytes."""
    packed: bool | None = None
    unpack = zlib.decompressobj(31)
    size = 0
    for block in blocks:
        if packed is None:
            packed = block.startswith(b"\x1f\x8b")
        if not packed:
            size += len(block)
            if size > most + BLOCK:
                raise too_large(most)
            yield block
            continue
        rest = block
        while rest:
            if unpack.eof:
                # Another member of the same file.
                unpack = zlib.decompressobj(31)
            try:
                piece = unpack.decompress(rest, BLOCK)
            except zlib.error:
                raise SourceFailed("its gzip compression is damaged", kind="broken") from None
            rest = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
            size += len(piece)
            if size > most:
                raise too_large(most)
            if piece:
                yield piece
    if packed and not unpack.eof:
        raise SourceFailed("its gzip compression is cut short", kind="broken")
