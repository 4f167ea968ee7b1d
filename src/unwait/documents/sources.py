"""Everything that a person named, listed lazily: files, directories, patterns, URLs, sitemaps, sites, lists of them.

Memory holds the names in one directory at each level above where the listing is, one sitemap, one level of a crawl,
and 8 bytes for each URI that was listed, so that none is listed twice.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from contextlib import aclosing
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TextIO, TypeAlias

from yarl import URL

from unwait.documents import jsonl, sitemap
from unwait.documents.crawl import HTML, Crawl, Sites, path_in
from unwait.documents.files import LINES, Found, Walk, is_lines, not_a_file, split_pattern, unreadable
from unwait.documents.ignore import Selection
from unwait.documents.load import content_of, refusal, unanswered
from unwait.documents.model import Failure, Source, SourceFailed
from unwait.documents.names import Seen, batches, is_url, normal, shown, uri_of
from unwait.web.client import Client
from unwait.web.errors import ClientError, InvalidURL
from unwait.web.lines import read_lines
from unwait.web.response import Response
from unwait.web.urls import redact

Named = str | os.PathLike[str]
# A source, or the sources that are to come in its place.
Part: TypeAlias = "Source | AsyncGenerator[Part, None]"
Parts: TypeAlias = AsyncGenerator[Part, None]

_LONGEST_NAME = 1 << 16  # bytes of a line of a list
_NAMES = 64  # that are looked at together
_MOST_SITEMAPS = 10_000
_DEEPEST_SITEMAP = 3
_ESCAPED = re.compile(r"\\x([89a-f][0-9a-f])")


class Listing:
    """The sources that were named; `async for source in listing`, once.

    What is named: a file; a directory; a pattern (`docs/**/*.md`) where there is no file of that name; "-" for a list
    on `stdin` (default: the process's), one name a line, without those that are empty or begin with #; a URL; a
    sitemap, in a file or at a URL. With `crawl`, a URL that is no sitemap is where a crawl of that depth begins. A
    JSON Lines file is a source for each of its lines, whose text is in `text_field`.

    `include` and `exclude` are patterns like those of ignore files, for files in directories and for the paths of pages
    in sitemaps and sites; what is named itself is always listed. `again` are failures of earlier runs: what failed
    then is listed first, and of JSON Lines only the lines that did. `max_bytes` bounds a line and a sitemap.

    `origins` are the directories, patterns, JSON Lines files, sitemaps and crawls that were named, and `complete` those
    of them that were listed to their end without a failure in the listing; both grow while it is iterated. What cannot
    be listed is a source with a `problem`. A URL with secrets that failed must be named to be tried `again`.

    Raises ValueError for patterns and a depth that make no sense.
    """

    def __init__(
        self,
        named: Iterable[Named],
        client: Client,
        *,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        crawl: int | None = None,
        text_field: str = "text",
        max_bytes: int = 50 << 20,
        stdin: TextIO | None = None,
        again: AsyncIterable[Failure] | None = None,
    ) -> None:
        if isinstance(named, str | bytes | os.PathLike):
            raise TypeError("named is one name: give a list of them")
        if crawl is not None and crawl < 0:
            raise ValueError("crawl is a number of links, and not negative")
        self.origins: set[str] = set()
        self._ended: set[str] = set()
        self._partial: set[str] = set()
        self._named = named
        self._client = client
        self._selection = Selection(include, exclude)
        self._crawl = crawl
        self._text_field = text_field
        self._max_bytes = max_bytes
        self._stdin = stdin
        self._again = again
        self._seen = Seen()
        self._sites = Sites(client)

    async def __aiter__(self) -> AsyncGenerator[Source, None]:
        parts = [self._everything()]
        try:
            while parts:
                part = await anext(parts[-1], None)
                if part is None:
                    parts.pop()
                elif isinstance(part, Source):
                    yield part
                else:
                    parts.append(part)
        finally:
            while parts:
                await parts.pop().aclose()

    @property
    def complete(self) -> set[str]:
        """The origins that have been listed to their end: what they did not list is not there."""
        return self._ended - self._partial

    async def _everything(self) -> Parts:
        if self._again is not None:
            yield self._failed_before(self._again)
        names = (os.fspath(name) for name in self._named)
        while some := list(islice(names, _NAMES)):
            kinds = await asyncio.to_thread(lambda: [_kind_of(name) for name in some])
            fresh = True
            for name, kind in zip(some, kinds, strict=True):
                yield self._list() if name == "-" else self._one(name, kind=kind if fresh else None)
                # What takes its time, as a directory or a list does: meanwhile others may have come and gone.
                fresh = fresh and kind == "file"

    def _new(self, uri: str) -> bool:
        return self._seen.add(uri)

    # What is named.

    def _one(self, name: str, origin: str | None = None, kind: str | SourceFailed | None = None) -> Parts:
        """The sources of one name. `origin` is what it was listed from before, if that was something else."""
        return self._url(name, origin) if is_url(name) else self._path(name, origin, kind)

    async def _list(self) -> Parts:
        """What a list on standard input names."""
        async with aclosing(_names(self._stdin or sys.stdin)) as names:
            async for name in names:
                if isinstance(name, SourceFailed):
                    yield Source("-", "-", problem=name)
                elif (name := name.strip()) and not name.startswith("#"):
                    yield self._one(name)

    # Files.

    async def _path(self, name: str, origin: str | None, kind: str | SourceFailed | None) -> Parts:
        path = os.path.abspath(name)
        uri = shown(path)
        if kind is None:
            kind = await asyncio.to_thread(_kind, name and path)
        if kind == "directory":
            yield self._walk(await asyncio.to_thread(self._walk_of, path, origin), uri, origin)
        elif kind == "sitemap":
            yield self._sitemap(sitemap.blocks_in(path), uri, origin, None)
        elif isinstance(kind, str):
            yield self._file(Found(uri, path, kind == "lines"), origin or uri, origin is None)
        elif kind.gone and origin is None and (pattern := split_pattern(name)) is not None:
            yield self._walk(Walk(pattern[0], self._selection, pattern=pattern[1]), uri, origin, True)
        elif self._new(uri):
            if origin is None and kind.gone and uri.endswith(LINES):
                # It is gone with all its lines, as a document is.
                self.origins.add(uri)
                self._ended.add(uri)
            yield Source(uri, origin or uri, path=path, problem=kind)

    def _walk_of(self, path: str, origin: str | None) -> Walk:
        """The walk through a directory, which may be one that could not be read in the walk of its origin."""
        root = origin and _path_of(origin)
        if root and os.path.isdir(root) and path.startswith(os.path.join(root, "")):
            return Walk(root, self._selection, below=path)
        pattern = split_pattern(root) if root else None
        if pattern is not None and path.startswith(os.path.join(pattern[0], "")):
            return Walk(pattern[0], self._selection, pattern=pattern[1], below=path)
        return Walk(path, self._selection)

    async def _walk(self, walk: Walk, uri: str, origin: str | None, pattern: bool = False) -> Parts:
        whole = origin is None
        origin = origin or uri
        if whole:
            self.origins.add(origin)
        empty = True
        async with aclosing(batches(iter(walk))) as found:
            async for batch in found:
                empty = False
                for file in batch:
                    yield self._file(file, origin, False)
        if pattern and empty:
            self._partial.add(origin)
            yield Source(uri, origin, problem=SourceFailed("no file matches this pattern", kind="not found"))
        if not walk.complete:
            self._partial.add(origin)
        if whole:
            self._ended.add(origin)

    async def _file(self, file: Found, origin: str, whole: bool) -> Parts:
        if not self._new(file.uri):
            return
        if not file.lines or file.problem is not None:
            yield Source(file.uri, origin, path=file.path, problem=file.problem)
            return
        if whole:
            self.origins.add(origin)
        yield self._lines(file.path, file.uri, origin, file.path)
        if whole:
            self._ended.add(origin)

    async def _lines(
        self, path: str, uri: str, origin: str, kept: str | None, wanted: Seen | None = None
    ) -> Parts:
        """The lines of a JSON Lines file, or the wanted ones of them."""
        own = Seen()
        lines = jsonl.read(path, uri, origin, self._text_field, self._max_bytes, kept)
        async with aclosing(batches(lines)) as found:
            async for batch in found:
                for number, source in batch:
                    if source.problem is not None:
                        # Which document it was is not known.
                        self._partial.add(origin)
                    if number and not own.add(source.uri):
                        problem = SourceFailed(
                            f"line {number} has the id of a line above; give it another", kind="broken"
                        )
                        source = Source(f"{source.uri} (line {number})", origin, path=kept, problem=problem)
                    if (wanted is None or source.uri in wanted) and (number == 0 or self._new(source.uri)):
                        yield source

    # Pages.

    async def _url(self, name: str, origin: str | None) -> Parts:
        try:
            url = normal(name)
        except InvalidURL as error:
            uri = shown(redact(name))
            if self._new(uri):
                yield Source(uri, origin or uri, problem=unanswered(error))
            return
        file_name = url.raw_path.rpartition("/")[2].lower()
        if file_name.endswith(LINES):
            yield self._lines_at(url, origin)
        elif sitemap.may_be(file_name):
            yield self._maybe_sitemap(url, origin)
        elif self._crawl is not None and origin is None:
            yield self._site(url, self._crawl)
        else:
            uri, location = uri_of(url)
            if self._new(uri):
                yield Source(uri, origin or uri, location=location)

    async def _site(self, url: URL, depth: int) -> Parts:
        origin, _ = uri_of(url)
        if origin in self.origins:
            return
        self.origins.add(origin)
        crawl = Crawl(url, depth, self._client, self._sites, self._selection)
        async with aclosing(crawl.pages()) as pages:
            async for page in pages:
                if page.partial:
                    self._partial.add(origin)
                uri, location = uri_of(page.url)
                if self._new(uri):
                    yield Source(uri, origin, location=location, content=page.content, problem=page.problem)
        self._ended.add(origin)

    async def _lines_at(self, url: URL, origin: str | None) -> Parts:
        uri, _ = uri_of(url)
        if not self._new(uri):
            return
        if origin is None:
            self.origins.add(uri)
        yield self._downloaded(url, uri, origin or uri)
        if origin is None:
            self._ended.add(uri)

    async def _downloaded(self, url: URL, uri: str, origin: str, wanted: Seen | None = None) -> Parts:
        """The lines of a file that is downloaded for that, and removed."""
        with TemporaryDirectory(prefix="unwait-", ignore_cleanup_errors=True) as directory:
            path = os.path.join(directory, "lines")
            try:
                await self._answer(url, Path(path))
            except SourceFailed as problem:
                if not problem.gone:
                    self._partial.add(origin)
                yield Source(uri, origin, problem=problem)
            else:
                yield self._lines(path, uri, origin, None, wanted)

    async def _answer(self, url: URL, save_to: Path | None = None) -> Response:
        """The answer with the page. Raises SourceFailed where there is none."""
        try:
            response = await self._client.get(str(url), save_to=save_to)
        except ClientError as error:
            raise unanswered(error) from None
        if not 200 <= response.status < 300:
            raise refusal(response)
        return response

    # Sitemaps.

    async def _maybe_sitemap(self, url: URL, origin: str | None) -> Parts:
        """A page with the name of a sitemap: its content decides."""
        uri, location = uri_of(url)
        try:
            content = await content_of(await self._answer(url))
        except SourceFailed as problem:
            if self._new(uri):
                if origin is None:
                    self.origins.add(uri)
                yield Source(uri, origin or uri, location=location, problem=problem)
            return
        if await asyncio.to_thread(sitemap.is_sitemap, sitemap.blocks_of(content.body)):
            yield self._sitemap(sitemap.blocks_of(content.body), uri, origin, url)
        elif self._crawl is not None and origin is None and content.media_type in HTML:
            yield self._site(url, self._crawl)
        elif self._new(uri):
            yield Source(uri, origin or uri, location=location, content=content)

    async def _sitemap(
        self, blocks: Iterator[bytes], uri: str, origin: str | None, base: URL | None
    ) -> Parts:
        """The pages of a sitemap and of those that it names, to a bounded depth and number."""
        whole = origin is None
        origin = origin or uri
        if whole:
            if origin in self.origins:
                return
            self.origins.add(origin)
        visited = Seen()
        visited.add(uri)
        # Depth first: of an index of indexes, the rest of each waits.
        waiting = [_Nested(base, uri, 0)]
        left = _MOST_SITEMAPS
        content: Iterator[bytes] | None = blocks
        while waiting:
            here = waiting.pop()
            try:
                if content is None:
                    content = await self._nested(here, left)
            except SourceFailed as problem:
                self._partial.add(origin)
                yield Source(here.uri, origin, problem=problem)
                if left <= 0:
                    break
                continue
            left -= 1
            nested: list[_Nested] = []
            entries: AsyncGenerator[list[sitemap.Entry | SourceFailed], None]
            entries = batches(sitemap.read(content, self._max_bytes))
            async with aclosing(entries) as found:
                async for batch in found:
                    for entry in batch:
                        if isinstance(entry, SourceFailed):
                            self._partial.add(origin)
                            yield Source(here.uri, origin, problem=entry)
                            continue
                        try:
                            url = _target(entry.location, here.url)
                        except InvalidURL as error:
                            name = shown(redact(entry.location))
                            if self._new(name):
                                yield Source(name, origin, problem=unanswered(error))
                            continue
                        name, location = uri_of(url)
                        if entry.nested:
                            if visited.add(name):
                                nested.append(_Nested(url, name, here.depth + 1))
                        elif self._wants(url) and self._new(name):
                            yield Source(name, origin, location=location)
            waiting += reversed(nested)
            content = None
        if whole:
            self._ended.add(origin)

    def _wants(self, url: URL) -> bool:
        path = path_in(url)
        return self._selection.includes(path) and not self._selection.excludes_page(path)

    async def _nested(self, here: _Nested, left: int) -> Iterator[bytes]:
        """The content of a sitemap that another one names. Raises SourceFailed."""
        if left <= 0:
            raise SourceFailed(f"the rest is left out after {_MOST_SITEMAPS:,} sitemaps", kind="too large")
        if here.depth > _DEEPEST_SITEMAP:
            raise SourceFailed(f"sitemaps in sitemaps more than {_DEEPEST_SITEMAP} deep", kind="too large")
        assert here.url is not None
        return sitemap.blocks_of((await self._answer(here.url)).content)

    # What failed before.

    async def _failed_before(self, failures: AsyncIterable[Failure]) -> Parts:
        # Those of a file come one after the other.
        file: _Lines | None = None
        iterator = aiter(failures)
        try:
            async for failure in iterator:
                lines = await _lines_of(failure)
                if file is not None and (lines is None or lines.uri != file.uri):
                    yield self._wanted(file)
                    file = None
                if lines is None:
                    yield self._once_more(failure)
                else:
                    file = file or lines
                    file.wanted.add(failure.uri)
        finally:
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()
        if file is not None:
            yield self._wanted(file)

    def _wanted(self, file: _Lines) -> Parts:
        if file.path is None:
            return self._downloaded(URL(file.uri), file.uri, file.origin, file.wanted)
        return self._lines(file.path, file.uri, file.origin, file.path, file.wanted)

    async def _once_more(self, failure: Failure) -> Parts:
        uri, origin = failure.uri, failure.origin
        if is_url(uri) and "***" in uri:
            message = "its URL has a secret, which is not kept: name it, or what lists it, again"
            yield Source(uri, origin, problem=SourceFailed(message, kind="refused"))
            return
        name = uri if is_url(uri) else await asyncio.to_thread(_path_of, uri)
        yield self._one(name, None if origin == uri else origin)


class _Nested(NamedTuple):
    url: URL | None  # None for a file
    uri: str
    depth: int


class _Lines(NamedTuple):
    """Lines of a JSON Lines file; `path` is None for one at a URL."""

    uri: str
    origin: str
    path: str | None
    wanted: Seen


def _kind_of(name: str) -> str | SourceFailed | None:
    return None if name == "-" or is_url(name) else _kind(name and os.path.abspath(name))


def _kind(path: str) -> str | SourceFailed:
    """What is at this path: "directory", "sitemap", "lines", "file", or why none of them."""
    if not path:
        return SourceFailed("the name is empty", kind="not found")
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        return unreadable(error)
    if stat.S_ISDIR(mode):
        return "directory"
    if not stat.S_ISREG(mode):
        return not_a_file()
    try:
        if sitemap.may_be(os.path.basename(path)) and sitemap.is_sitemap(sitemap.blocks_in(path)):
            return "sitemap"
    except SourceFailed as problem:
        return problem
    return "lines" if is_lines(path) else "file"


def _target(location: str, base: URL | None) -> URL:
    """The page at an address in a sitemap; credentials of the sitemap are for its own site. Raises InvalidURL."""
    try:
        url = normal(str(base.join(URL(location))) if base is not None else location)
    except InvalidURL:
        raise
    except ValueError:
        raise InvalidURL("invalid URL: bad host or port") from None
    if base is not None and base.raw_user is not None and url.origin() == base.origin():
        return url.with_user(base.user).with_password(base.password)
    return url


def _path_of(uri: str) -> str:
    """The path of a file whose URI this is: bytes that are not UTF-8 are escaped in it."""
    if os.path.lexists(uri):
        return uri
    raw = _ESCAPED.sub(lambda match: os.fsdecode(bytes.fromhex(match[1])), uri)
    return raw if os.path.lexists(raw) else uri


async def _lines_of(failure: Failure) -> _Lines | None:
    """The JSON Lines file that a failure is a line of; None if it is none."""
    uri = failure.uri
    if "#" not in uri or "***" in uri:
        return None
    if is_url(uri):
        file = uri.partition("#")[0]
        return _Lines(file, failure.origin, None, Seen()) if file.lower().endswith(LINES) else None
    path = await asyncio.to_thread(_file_with_line, uri)
    return None if path is None else _Lines(shown(path), failure.origin, path, Seen())


def _file_with_line(uri: str) -> str | None:
    if os.path.lexists(_path_of(uri)):
        return None
    # There may be a # in names and in ids.
    end = uri.find("#")
    while end >= 0:
        path = _path_of(uri[:end])
        if os.path.isfile(path) and is_lines(path):
            return path
        end = uri.find("#", end + 1)
    return None


async def _names(stdin: TextIO | None) -> AsyncGenerator[str | SourceFailed, None]:
    """The lines of standard input as they come."""
    if stdin is None:
        return
    try:
        descriptor = stdin.fileno()
    except (OSError, ValueError):
        # Text in memory.
        for line in stdin:
            yield line
        return
    try:
        async with aclosing(read_lines(descriptor, _LONGEST_NAME)) as lines:
            async for number, data in lines:
                if data is None:
                    yield SourceFailed(f"line {number} of the list is too long for a name", kind="too large")
                else:
                    yield os.fsdecode(data)
    except OSError as error:
        yield SourceFailed(f"the list on standard input: {unreadable(error)}", kind="broken")
