"""The bytes of a source, from its file or its server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from hashlib import blake2b

from unwait.documents.files import read_file, too_large
from unwait.documents.model import Content, Source, SourceFailed, State
from unwait.documents.names import is_url
from unwait.web.causes import status_cause
from unwait.web.client import Client
from unwait.web.errors import (
    ClientError,
    ConnectionFailed,
    ConnectionLost,
    InvalidURL,
    TimedOut,
    TooLarge,
)
from unwait.web.response import Response

_AT_ONCE = 1 << 18  # bytes that are hashed within the loop
_MEDIA_TYPES = {
    ".htm": "text/html",
    ".html": "text/html",
    ".xhtml": "application/xhtml+xml",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".txt": "text/plain",
    ".text": "text/plain",
    ".rst": "text/x-rst",
    ".pdf": "application/pdf",
    ".json": "application/json",
    ".xml": "application/xml",
}


async def load(source: Source, known: State | None, client: Client, *, max_bytes: int) -> Content | None:
    """What the source consists of; None if its server says that it is what is `known`.

    Files are read in a thread. The client's own `max_bytes` ends the download of a page that is too large, also of one
    that becomes so when it is decompressed. Raises SourceFailed.
    """
    if source.problem is not None:
        raise source.problem
    if source.content is not None:
        return source.content
    url = source.location or source.uri
    if source.path is not None or not is_url(url):
        return await asyncio.to_thread(_read, source.path or source.uri, max_bytes)
    headers = {}
    if known is not None and known.etag:
        headers["If-None-Match"] = known.etag
    if known is not None and known.last_modified:
        headers["If-Modified-Since"] = known.last_modified
    try:
        response = await client.get(url, headers=headers or None)
    except ClientError as error:
        raise unanswered(error) from None
    if response.status == 304 and headers:
        return None
    if not 200 <= response.status < 300:
        raise refusal(response)
    if response.size > max_bytes:
        raise too_large(max_bytes)
    return await content_of(response)


async def load_files(paths: Sequence[str], max_bytes: int) -> list[Content | SourceFailed]:
    """What each of these files consists of, or why it is not known; read one after the other in a thread."""
    return await asyncio.to_thread(lambda: [_content_or_problem(path, max_bytes) for path in paths])


def _content_or_problem(path: str, max_bytes: int) -> Content | SourceFailed:
    try:
        return _read(path, max_bytes)
    except SourceFailed as problem:
        return problem


def _read(path: str, max_bytes: int) -> Content:
    body = read_file(path, max_bytes)
    return Content(body, _digest(body), _MEDIA_TYPES.get(os.path.splitext(path)[1].lower()))


def _digest(body: bytes) -> str:
    return blake2b(body, digest_size=16).hexdigest()


async def content_of(response: Response) -> Content:
    """The content of an answer."""
    body, headers = response.content, response.headers
    digest = _digest(body) if len(body) <= _AT_ONCE else await asyncio.to_thread(_digest, body)
    media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower() or None
    return Content(
        body, digest, media_type, response.charset, headers.get("ETag"), headers.get("Last-Modified")
    )


def refusal(response: Response) -> SourceFailed:
    """What an answer without the content means."""
    status, cause = response.status, status_cause(response.status, response.reason)
    if status in (404, 410):
        return SourceFailed(cause, kind="not found", gone=True)
    if status == 408:
        return SourceFailed(cause, kind="timed out")
    if status >= 500:
        return SourceFailed(cause, kind="server error")
    if status >= 400:
        return SourceFailed(cause, kind="refused")
    return SourceFailed(f"{cause} instead of the page", kind="broken")


def unanswered(error: ClientError) -> SourceFailed:
    """What a request without a usable answer means."""
    text = f"{error.cause}; {error.hint}" if error.hint else error.cause
    match error:
        case TooLarge():
            kind = "too large"
        case TimedOut():
            kind = "timed out"
        case ConnectionFailed() | ConnectionLost():
            kind = "unreachable"
        case InvalidURL():
            kind = "not a URL"
        case _:
            kind = "broken"
    return SourceFailed(text, kind=kind)
