"""Many URLs at once: each gives a typed result as soon as it is done, whatever happens to the rest."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from itertools import islice
from mimetypes import guess_extension
from pathlib import Path
from types import TracebackType

import aiohttp
from yarl import URL

from unwait.version import __version__
from unwait.web.causes import Failure, cause, status_cause
from unwait.web.encoding import ACCEPTED, Decoder
from unwait.web.text import first_characters
from unwait.web.urls import FileNames, InvalidURL, parse, redact

_CHUNK = 1 << 16  # bytes read from a body at once
_HEAD = 4096  # bytes kept of each body, for its first characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What became of one URL.

    `index` is its place among the URLs given, from 0; `url` the URL with its credentials replaced by `***`;
    `status` the HTTP status of the last answer, if there was one; `error` the cause of a failure, None if
    fetched; `size` the bytes of the body that were read, decoded; `elapsed` the seconds from start to end;
    `begins` the first characters of the body, printable; `path` the file with the body, None if not saved.
    """

    index: int
    url: str
    status: int | None
    error: str | None
    size: int
    elapsed: float
    begins: str
    path: Path | None


async def fetch_as_completed(
    urls: Iterable[str],
    *,
    limit: int = 100,
    timeout: float = 60.0,
    max_bytes: int = 50 << 20,
    max_redirects: int = 10,
    directory: Path | None = None,
    characters: int = 60,
) -> AsyncGenerator[Fetched, None]:
    """GET each URL and yield its result as soon as it is there.

    At most `limit` tasks exist at any time and `urls` is pulled as they end, so that memory is bound by
    `limit` (and, with `directory`, by the file names given). A consumer that is slow slows the fetching;
    close the generator (`contextlib.aclosing`) to cancel what is left.

    `timeout` is in seconds and for one URL in all, redirects and body included; `max_bytes` bounds each
    decoded body; `directory` must exist, and the body of each 2xx answer becomes a file there, visible only
    when complete; `characters` is how much of each body the result shows.

    What goes wrong with one URL is its result's `error`, and so is an answer that is not 2xx. Raises
    ValueError for a limit, timeout or max_bytes that is not positive.
    """
    if limit < 1 or not timeout > 0 or max_bytes < 1:
        raise ValueError("limit, timeout and max_bytes must be positive")
    jobs = enumerate(urls)
    names = FileNames()
    running: set[asyncio.Task[Fetched]] = set()
    finished: asyncio.Queue[asyncio.Task[Fetched]] = asyncio.Queue()

    def start(count: int) -> None:
        for index, url in islice(jobs, count):
            fetch = _Fetch(index, url, timeout, max_bytes, max_redirects, directory, characters)
            task = asyncio.create_task(fetch.result(session, names))
            running.add(task)
            task.add_done_callback(finished.put_nowait)

    async with _session() as session:
        try:
            start(limit)
            while running:
                task = await finished.get()
                running.remove(task)
                start(1)
                yield task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        # The number of tasks bounds the connections; a queue here would count its wait as the server's.
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"unwait/{__version__}", "Accept-Encoding": ACCEPTED},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
    )


@dataclass(slots=True)
class _Fetch:
    """One URL on its way: the request, and what is known of the answer so far."""

    index: int
    url: str
    timeout: float
    max_bytes: int
    max_redirects: int
    directory: Path | None
    characters: int
    status: int | None = None
    size: int = 0
    head: bytearray = field(default_factory=bytearray)
    charset: str | None = None
    path: Path | None = None

    async def result(self, session: aiohttp.ClientSession, names: FileNames) -> Fetched:
        """The result, whatever happens; raises nothing but a cancellation."""
        started = time.perf_counter()
        error: str | None = None
        scope = asyncio.timeout(self.timeout)
        try:
            url = parse(self.url)
            async with scope:
                await self._get(session, url, names)
        except InvalidURL as invalid:
            error = str(invalid)
        except Exception as failed:
            error = self._timed_out() if scope.expired() else cause(failed)
        return Fetched(
            index=self.index,
            url=redact(self.url),
            status=self.status,
            error=error,
            size=self.size,
            elapsed=time.perf_counter() - started,
            begins=first_characters(bytes(self.head), self.charset, self.characters),
            path=self.path,
        )

    def _timed_out(self) -> str:
        read = "without an answer" if self.status is None else f"with {self.size} bytes of the body read"
        return f"timed out after {self.timeout:g} s {read}"

    async def _get(self, session: aiohttp.ClientSession, url: URL, names: FileNames) -> None:
        # Taken before the first wait, so that names follow the order of the URLs and not that of the answers.
        name = names(url) if self.directory else None
        async with session.get(url, max_redirects=self.max_redirects) as response:
            self.status = response.status
            self.charset = response.charset
            try:
                if response.ok and 200 <= response.status < 300:
                    await self._save(response, name)
                else:
                    await self._read_error(response)
            except BaseException:
                # The rest of the body is not wanted: closing spares the wait for it.
                response.close()
                raise

    async def _save(self, response: aiohttp.ClientResponse, name: tuple[str, str] | None) -> None:
        if self.directory is None or name is None:
            await self._read(response, None)
            return
        stem, extension = name
        path = self.directory / (stem + (extension or guess_extension(response.content_type) or ""))
        with _PartFile(path) as part:
            await self._read(response, part)
        self.path = path

    async def _read_error(self, response: aiohttp.ClientResponse) -> None:
        try:
            await self._read(response, None)
        except (Failure, aiohttp.ClientError):
            # Whatever its body holds, the status is the cause.
            response.close()
        raise Failure(status_cause(response.status, response.reason))

    async def _read(self, response: aiohttp.ClientResponse, part: _PartFile | None) -> None:
        too_large = Failure(f"body is larger than {self.max_bytes} bytes")
        if (response.content_length or 0) > self.max_bytes:
            raise too_large
        decoder = Decoder(response.headers.get("Content-Encoding", ""))
        try:
            async for chunk in response.content.iter_chunked(_CHUNK):
                for piece in decoder.feed(chunk):
                    self.size += len(piece)
                    if self.size > self.max_bytes:
                        raise too_large
                    if len(self.head) < _HEAD:
                        self.head += piece[:_HEAD]
                    if part is not None:
                        part.write(piece)
                    if len(piece) > _CHUNK:
                        # Inflating is work: the other fetches get their turn between two pieces.
                        await asyncio.sleep(0)
        except aiohttp.ClientPayloadError:
            expected = response.content_length
            whole = "" if expected is None or "Content-Encoding" in response.headers else f" of {expected}"
            raise Failure(f"body cut short after {self.size}{whole} bytes") from None
        decoder.finish()


class _PartFile:
    """A file that gets its name when it is complete; until then it is hidden, and removed if it never is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")

    def __enter__(self) -> _PartFile:
        # A link that lies in the way must not lead out of the directory.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._file = open(os.open(self._part, flags, 0o666), "wb", buffering=0)
        except OSError as error:
            raise _not_saved(error) from None
        return self

    def write(self, piece: bytes) -> None:
        # Straight to the page cache: a thread for each piece would cost more than it spares.
        view = memoryview(piece)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise _not_saved(error) from None

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        try:
            self._file.close()
            if kind is None:
                os.replace(self._part, self._path)
                return
        except OSError as error:
            self._part.unlink(missing_ok=True)
            raise _not_saved(error) from None
        self._part.unlink(missing_ok=True)


def _not_saved(error: OSError) -> Failure:
    return Failure(f"cannot save the body: {error.strerror}")
