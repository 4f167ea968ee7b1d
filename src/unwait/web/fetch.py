"""Many URLs at once: their responses in order, or a row for each as soon as it is done."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from mimetypes import guess_extension
from pathlib import Path
from typing import Any, Literal, Unpack

from multidict import CIMultiDict, CIMultiDictProxy

from unwait.flow.fanout import OnError, Run, Stream, collect
from unwait.flow.journal import Journal
from unwait.flow.outcome import Outcome, Results
from unwait.flow.stats import Report
from unwait.web.causes import cause, status_cause
from unwait.web.client import Client
from unwait.web.errors import ClientError, InvalidURL, StatusError
from unwait.web.many import ClientOptions, Keys, calling, count_refusal, opened, tasks
from unwait.web.response import Response
from unwait.web.text import first_characters, printable
from unwait.web.urls import FileNames, is_secret, parse, redact

_HEAD = 4096  # bytes kept of each body, for its first characters


async def fetch(
    urls: Iterable[str] | AsyncIterable[str],
    *,
    limit: int | Literal["auto"] = 100,
    cost: Callable[[str], float] | None = None,
    errors: OnError = "raise",
    journal: str | os.PathLike[str] | None = None,
    progress: bool | Callable[[Report], None] | None = None,
    grace: float = 10.0,
    client: Client | None = None,
    **options: Unpack[ClientOptions],
) -> Results[Response]:
    """GET each of `urls`, many at once; the responses in the order of the URLs.

    At most `limit` requests are under way at the same time, of these `per_host` to one host if that is given; with
    `limit="auto"`, as many as the servers bear. `rate="50/s"` bounds the attempts, `tokens="90000/min"` the sum of
    `cost(url)`. These and `retry`, `timeout`, `max_bytes`, `headers`, `cache` and what else `ClientOptions` names are
    for a `Client` that is opened for this; or give an open one as `client`, with its own.

    An answer is a response whatever its status, but for what another try may change: 408, 425, 429 and 5xx, after
    the last retry, are failures like a lost connection, with the response in their error (`StatusError`). `errors`
    says what becomes of failures: `"raise"` cancels the rest and raises MapError, which has the outcomes so far;
    `"return"` puts the error in the place of the response; `"skip"` leaves it out.

    With `journal`, a file, each response is saved, without headers that carry secrets, and a second run fetches only
    what is missing or failed. `progress` and `grace` are those of `map`. Memory holds all responses.

    Raises ValueError and TypeError for parameters that make no sense, JournalError for a journal of something else.
    """
    if isinstance(urls, str):
        raise TypeError("urls is one URL: give a list of them, [url]")
    if errors not in ("raise", "return", "skip"):
        raise ValueError(f'errors must be "raise", "return" or "skip", not {errors!r}')
    if options.get("tokens") is not None and cost is None:
        raise ValueError("tokens= needs cost=, a function that tells how many tokens a URL takes")

    async with opened(client, limit, options) as client:

        def send(outcome: Outcome[str, Response]) -> Awaitable[Response]:
            url = _checked(outcome.item)
            return client.request("GET", url, cost=0 if cost is None else cost(url))

        run = Run(
            fetch,
            urls,
            limit=tasks(limit),
            journal=None if journal is None else Journal(journal, codec=ResponseCodec()),
            key=None if journal is None else Keys(),
            progress=progress,
            grace=grace,
            caller=calling(client, limit, send, lambda outcome, response: response),
        )
        return await collect(run, errors)


def _checked(url: object) -> str:
    if not isinstance(url, str):
        raise InvalidURL(f"a URL is a str, not {type(url).__name__}")
    return url


class ResponseCodec:
    """Responses in a journal: a line of JSON, then the body as it is. Headers that carry secrets are left out."""

    name = "response"

    def encode(self, value: Response) -> bytes:
        head = {
            "status": value.status,
            "reason": value.reason,
            "method": value.method,
            "url": value.url,
            "headers": [pair for pair in value.headers.items() if not is_secret(pair[0])],
            "size": value.size,
            "path": None if value.path is None else str(value.path),
            "attempts": value.attempts,
            "waited": value.waited,
            "elapsed": value.elapsed,
            "from_cache": value.from_cache,
            "deduplicated": value.deduplicated,
        }
        return json.dumps(head, separators=(",", ":")).encode() + b"\n" + value.content

    def decode(self, data: bytes) -> Response:
        end = data.index(b"\n")
        head = json.loads(data[:end])
        path = head.pop("path")
        headers: CIMultiDict[str] = CIMultiDict(head.pop("headers"))
        return Response(
            **head,
            headers=CIMultiDictProxy(headers),
            path=None if path is None else Path(path),
            content=data[end + 1 :],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What became of one URL.

    `index` is its place among the URLs given, from 0; `url` the URL with its secrets replaced by `***`; `status` the
    HTTP status of the last answer, if there was a complete one; `error` the cause of a failure, None if fetched;
    `size` the bytes of the body that were read, decoded; `elapsed` the seconds from start to end, of which `waited`
    went by in limits and between attempts; `attempts` how often it was asked for; `begins` the first characters of
    the body, printable; `path` the file with the body, None if not saved; `resumed` whether all this comes from
    the journal, and nothing was fetched.
    """

    index: int
    url: str
    status: int | None
    error: str | None
    size: int
    elapsed: float
    waited: float
    attempts: int
    begins: str
    path: Path | None
    resumed: bool = False


async def fetch_as_completed(
    urls: Iterable[str] | AsyncIterable[str],
    *,
    limit: int | Literal["auto"] = 100,
    directory: Path | None = None,
    characters: int = 60,
    journal: str | os.PathLike[str] | None = None,
    progress: bool | Callable[[Report], None] | None = False,
    grace: float = 10.0,
    client: Client | None = None,
    **options: Unpack[ClientOptions],
) -> AsyncGenerator[Fetched, None]:
    """GET each URL and yield what became of it as soon as that is known.

    At most `limit` tasks exist at any time and `urls` is pulled as they end, so that memory is bound by
    `limit` (and, with `directory`, by the file names given). A consumer that is slow slows the fetching;
    close the generator (`contextlib.aclosing`) to cancel what is left.

    `directory` must exist, and the body of each 2xx answer becomes a file there, visible only when complete;
    `characters` is how much of each body the result shows. The rest are the parameters of `fetch`.

    What goes wrong with one URL is its result's `error`, and so is an answer that is not 2xx. With `journal`, a
    second run fetches again what had no answer, or one that another try may change, and what is not (or no more)
    in `directory`.

    Raises ValueError for bounds that are not positive, JournalError for a journal of something else.
    """
    names = None if directory is None else _names(directory, journal)

    async with opened(client, limit, options) as client:

        def send(outcome: Outcome[str, Fetched]) -> Awaitable[Response]:
            url = _checked(outcome.item)
            if directory is None or names is None:
                return client.request("GET", url, keep=_HEAD)
            # Named before the first wait, so that names follow the order of the URLs and not that of the answers.
            stem, extension = names(parse(url))
            return client.request("GET", url, save_to=partial(_file, directory, stem, extension), keep=_HEAD)

        def row(outcome: Outcome[str, Fetched], response: Response) -> Fetched:
            return _of_response(outcome.item, response, characters)

        run = Run(
            fetch,
            urls,
            limit=tasks(limit),
            journal=None
            if journal is None
            else Journal(journal, codec=_RowCodec(), valid=partial(_is_there, directory)),
            key=None if journal is None else Keys(),
            progress=progress,
            grace=grace,
            caller=calling(client, limit, send, row),
        )
        stream: Stream[str, Fetched] = Stream(run, tasks(limit))
        async with stream:
            async for outcome in stream:
                if outcome.value is None or outcome.error is not None:
                    yield _of_error(outcome, characters)
                else:
                    if outcome.value.error is not None:
                        count_refusal(stream.report, outcome.value.status)
                    yield replace(
                        outcome.value, index=outcome.index, elapsed=outcome.elapsed, resumed=outcome.resumed
                    )


def _names(directory: Path, journal: str | os.PathLike[str] | None) -> FileNames:
    """Names for files, none of which is that of a file that an earlier run made and that is not made again."""
    names = FileNames()
    if journal is not None and os.path.exists(journal) and os.path.getsize(journal):
        from unwait.flow.journal_reader import JournalReader

        with JournalReader(journal) as reader:
            for item in reader.items():
                row = _RowCodec().decode(item.data) if item.data else None
                if row is not None and row.path is not None and _is_there(directory, row):
                    names.reserve(row.path.name)
                    names.reserve(row.path.stem)
    return names


def _file(directory: Path, stem: str, extension: str, response: Response) -> Path:
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return directory / (stem + (extension or guess_extension(kind) or ""))


def _is_there(directory: Path | None, row: Fetched) -> bool:
    """Whether the body of a row from the journal is where it is wanted, if it is."""
    if directory is None or row.error is not None:
        return True
    try:
        return row.path is not None and row.path.parent == directory and row.path.stat().st_size == row.size
    except OSError:
        return False


def _of_response(url: str, response: Response, characters: int) -> Fetched:
    good = 200 <= response.status < 300
    return Fetched(
        index=0,
        url=redact(url),
        status=response.status,
        error=None if good else status_cause(response.status, response.reason),
        size=response.size,
        elapsed=response.elapsed,
        waited=response.waited,
        attempts=response.attempts,
        begins=first_characters(response.content[:_HEAD], response.charset, characters),
        path=response.path,
    )


def _of_error(outcome: Outcome[str, Fetched], characters: int) -> Fetched:
    error = outcome.error
    url = outcome.item if isinstance(outcome.item, str) else repr(outcome.item)
    if isinstance(error, StatusError) and error.response is not None:
        return replace(
            _of_response(url, error.response, characters), index=outcome.index, elapsed=outcome.elapsed
        )
    known = isinstance(error, ClientError | OSError)
    return Fetched(
        index=outcome.index,
        url=redact(url),
        status=None,
        error=cause(error) if known and isinstance(error, Exception) else printable(str(error)),
        size=0,
        elapsed=outcome.elapsed,
        waited=outcome.waited,
        attempts=outcome.attempts,
        begins="",
        path=None,
    )


class _RowCodec:
    """Rows in a journal, as JSON that `unwait journal export` can show."""

    name = "json"

    def encode(self, value: Fetched) -> bytes:
        row = asdict(value)
        row["path"] = None if value.path is None else str(value.path)
        return json.dumps(row, separators=(",", ":")).encode()

    def decode(self, data: bytes) -> Fetched:
        row: Mapping[str, Any] = json.loads(data)
        path = row["path"]
        return Fetched(**{**row, "path": None if path is None else Path(path)})
