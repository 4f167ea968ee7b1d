"""One request on its way: its attempts, the redirects of each, and the body of the answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import aiohttp
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from unwait.web.breaker import Admission
from unwait.web.cache import Entry
from unwait.web.causes import cause, status_cause
from unwait.web.connector import Connection
from unwait.web.deadline import Deadline
from unwait.web.encoding import Decoder
from unwait.web.environment import basic
from unwait.web.errors import (
    IDEMPOTENT,
    RETRIED,
    ClientError,
    ConnectionFailed,
    ConnectionLost,
    InvalidAnswer,
    RedirectError,
    TimedOut,
    TooLarge,
)
from unwait.web.headers import retry_after
from unwait.web.partfile import PartFile
from unwait.web.response import Response
from unwait.web.urls import is_secret, parse, redact

if TYPE_CHECKING:
    from unwait.web.client import Client

_OVERLOADED = frozenset((429, 503))
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_AT_ONCE = 1 << 18  # bytes of a cached body that are read or written within the loop
_SLICE = 1 << 16  # bytes decoded between two turns of the other tasks
# Asking again gives the same answer.
_UNKNOWN_HOST = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None), socket.EAI_FAIL)
# Of OpenSSL's verdicts on a certificate, those that another list of authorities would change.
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)

T = TypeVar("T")
SaveTo = str | Path | Callable[[Response], str | Path]


class Refused(Exception):
    """An answer whose status says that the request may be made again, for the engine; the exchange has the answer."""

    def __init__(self, status: int, delay: float | None, retryable: bool) -> None:
        super().__init__(f"HTTP {status}")
        self.retry_after = delay
        self.overloaded = status in _OVERLOADED
        self.retryable = retryable


class Exchange:
    """A request and what is known of its answer so far."""

    __slots__ = (
        "_begun",
        "_client",
        "_connection",
        "_deadline",
        "_entry",
        "_hop_url",
        "_redirected",
        "attempts",
        "body",
        "content",
        "from_cache",
        "headers",
        "idempotent",
        "keep",
        "method",
        "path",
        "reason",
        "response_headers",
        "save_to",
        "size",
        "status",
        "text",
        "timeout",
        "url",
    )

    status: int | None

    def __init__(
        self,
        client: Client,
        method: str,
        url: URL,
        headers: CIMultiDict[str],
        body: bytes | None,
        timeout: float,
        idempotent: bool,
        save_to: SaveTo | None,
        keep: int | None,
    ) -> None:
        if url.raw_user is not None or url.raw_password is not None:
            headers = CIMultiDict(headers)
            headers.setdefault("Authorization", basic(url.user, url.password))
            url = url.with_user(None)
        self._client = client
        self.method = method
        self.url = url
        self.text = str(url)
        self.headers = headers
        self.body = body
        self.timeout = timeout
        self.idempotent = idempotent
        self.save_to = save_to
        self.keep = keep if keep is not None or save_to is None else 0
        self._entry: Entry | None = None
        self._connection: Connection | None = None
        self._hop_url = url
        self._redirected = False
        self.attempts = 0
        self.status = None
        self.size = 0
        self.content = b""
        self.path: Path | None = None
        self.from_cache = False

    # Results

    async def cached(self) -> Response | None:
        """The answer, if it is in the cache and fresh."""
        cache = self._client.cache
        if cache is None or self.method != "GET":
            return None
        size = cache.size(self.text)
        entry = await _unblocking(size, lambda: cache.lookup(self.method, self.text, self.headers))
        self._entry = entry
        if entry is None or not entry.fresh:
            return None
        self._use_entry()
        return self.response()

    def response(self, waited: float = 0.0, elapsed: float = 0.0) -> Response:
        """The answer as it is known now."""
        return Response(
            self.status or 0,
            self.reason,
            self.method,
            redact(self._asked()),
            self.response_headers,
            self.content if self.keep is None else self.content[: self.keep],
            self.size,
            self.path,
            self.attempts,
            waited,
            elapsed,
            self.from_cache,
        )

    def last_answer(self) -> str:
        """For a message: what the last answer was, if there was one."""
        return (
            "" if self.status is None else f"; the last answer was {status_cause(self.status, self.reason)}"
        )

    def describe(self, error: ClientError) -> ClientError:
        """The error, with the request that it is about."""
        error.method = self.method
        error.url = redact(self.text)
        error.attempts = self.attempts
        return error

    # Attempts

    async def attempt(self, _: str) -> None:
        """Send the request once and read the answer; `Refused` or a `ClientError` if it may be, or is, in vain."""
        if self._client.closed:
            raise ConnectionLost("the client was closed before the request was sent")
        self.attempts += 1
        self.status = None
        self.size = 0
        self.content = b""
        self._redirected = False
        loop = self._client.loop
        self._begun = loop.time()
        self._deadline = deadline = Deadline(loop, self._begun + self.timeout)
        alone = None
        try:
            await self._follow()
        except asyncio.CancelledError:
            alone = deadline.close()
            if alone:
                raise self._timed_out() from None
            if self._client.closed and not deadline.cancelled:
                # The pool, when it is closed, cancels the wait for a connection, not the task.
                raise ConnectionLost("the client was closed while the request was under way") from None
            raise
        except (ClientError, aiohttp.ClientError, HttpProcessingError, OSError) as error:
            if self._client.closed:
                raise ConnectionLost("the client was closed while the request was under way") from None
            failure = error if isinstance(error, ClientError) else self._failure(error)
            if self._redirected and not self.idempotent:
                # Where it was redirected from it may have been done.
                failure.retryable = False
            raise failure from None
        finally:
            if alone is None:
                deadline.close()

    async def _follow(self) -> None:
        client, method, url, headers, body = self._client, self.method, self.url, self.headers, self.body
        breaker, clock = client.breaker, client.loop.time
        validators = None if self._entry is None else self._entry.validators
        if validators:
            headers = CIMultiDict(headers)
            headers.update(validators)
        followed = 0
        while True:
            self._hop_url = url
            self._connection = None
            admission = None if breaker is None else breaker.check(url.raw_authority, clock())
            try:
                location = await self._ask(method, url, headers, body)
            except BaseException as error:
                if admission is not None:
                    self._report(admission, error)
                raise
            status = self.status
            assert status is not None
            if admission is not None:
                admission.answered(status, clock())
            if location is None:
                break
            if followed >= client.max_redirects:
                raise RedirectError(f"more than {client.max_redirects} redirects")
            followed += 1
            self._redirected = True
            target = _target(url, location)
            dropped = ["if-none-match", "if-modified-since"] if validators and followed == 1 else []
            if (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST"):
                method, body = "GET", None
                dropped += [name for name in headers if name.lower().startswith("content-")]
            secrets = [name for name in headers if is_secret(name)]
            if url.scheme == "https" and target.scheme == "http" and (secrets or body is not None):
                raise RedirectError(
                    "redirected from https to http, where the request's secrets could be read",
                    hint="ask for the http URL itself if that is meant",
                )
            if _leaves(url, target):
                # A host that the caller named is that of the first origin.
                dropped += [*secrets, "host"]
            if dropped:
                headers = CIMultiDict(headers)
                for name in dropped:
                    headers.popall(name, None)
            if target.raw_user is not None or target.raw_password is not None:
                headers = CIMultiDict(headers)
                headers["Authorization"] = basic(target.user, target.password)
                target = target.with_user(None)
            url = target
        await self._settle(followed)

    def _report(self, admission: Admission, error: BaseException) -> None:
        """Tell the breaker of a request that failed whether that was the host's fault."""
        ours = isinstance(error, ClientError) and not isinstance(error, ConnectionLost)
        # A name that is not known, or a certificate that is not trusted, says nothing about how the host does.
        ours = ours or isinstance(
            error, aiohttp.ClientConnectorDNSError | aiohttp.ClientConnectorCertificateError
        )
        if self._deadline.expired or (isinstance(error, aiohttp.ClientError | OSError) and not ours):
            admission.failed(self._client.loop.time())
        else:
            admission.cancelled()

    async def _settle(self, followed: int) -> None:
        """What follows from the whole answer, for the limits, the engine and the cache."""
        client, status = self._client, self.status
        assert status is not None
        client.observe(self._asked(), self.response_headers, client.loop.time() - self._begun)
        if status in RETRIED:
            delay = retry_after(self.response_headers)
            # 429 says that the request was turned away: that is safe to repeat, whatever its method.
            raise Refused(status, delay, self.idempotent or (status == 429 and not followed))
        cache = client.cache
        if cache is None or followed:
            return
        if self.method not in IDEMPOTENT or self.method in ("PUT", "DELETE"):
            if status < 400:
                cache.invalidate(self.text)
        elif self.method == "GET" and status == 304 and self._entry is not None:
            entry, received = self._entry, self.response_headers.items()
            self._entry = await _unblocking(entry.size, lambda: cache.revalidated(entry, received))
            self._use_entry()
        elif self.method == "GET":
            pairs = self.response_headers.items()
            await _unblocking(
                len(self.content),
                lambda: cache.store(self.text, self.headers, status, self.reason, pairs, self.content),
            )

    def _asked(self) -> str:
        """The URL that was asked last."""
        return self.text if self._hop_url is self.url else str(self._hop_url)

    def _use_entry(self) -> None:
        entry = self._entry
        assert entry is not None
        self.status, self.reason = entry.status, entry.reason
        self.response_headers = CIMultiDictProxy(CIMultiDict(entry.headers))
        self.size = len(entry.content)
        self.content = entry.content
        self.from_cache = True
        if (path := self._path()) is not None:
            with PartFile(path) as part:
                part.write(entry.content)
            self.path = path

    async def _ask(self, method: str, url: URL, headers: CIMultiDict[str], body: bytes | None) -> str | None:
        """Send one request and read its answer; where it redirects to, if it does."""
        client = self._client
        connector = client.connector
        route = connector.route(url)
        held = await connector.connection(route)
        connection = held.protocol
        assert isinstance(connection, Connection)
        self._connection = connection
        try:
            connection.send(method, route.head(method, url, headers, body), body)
            message, stream = await connection.answer()
            self.status, self.reason = message.code, message.reason or ""
            self.response_headers = received = message.headers
            if message.code == 101:
                raise InvalidAnswer("the server switched to a protocol that was not asked for")
            location = None
            if message.code in _REDIRECTS and client.max_redirects:
                location = received.get("Location")
            if location is None:
                await self._receive(connection, stream)
        except BaseException:
            # The rest is not wanted, in either direction: an orderly end would wait for it.
            if connection.transport is not None:
                connection.transport.abort()
            held.close()
            raise
        if connection.transport is not None and connection.transport.get_write_buffer_size():
            # Answered before all of the request was sent: what is left of it must not precede the next one.
            connection.transport.abort()
            held.close()
        else:
            connection.idle = True
            held.release()
        return location

    # The body

    async def _receive(self, connection: Connection, stream: aiohttp.StreamReader) -> None:
        assert self.status is not None
        if self._is_small(connection, stream):
            self.content = stream.read_nowait()
            self.size = len(self.content)
            return
        pieces: list[bytes] = []
        if self.status >= 400:
            with suppress(ClientError, aiohttp.ClientError):
                # Whatever becomes of its body, the status is the answer.
                await self._read(connection, stream, pieces.append)
        else:
            path = self._path() if 200 <= self.status < 300 else None
            # The cache wants all of it.
            enough = self.keep if self._client.cache is None else None
            if path is None and enough is None:
                await self._read(connection, stream, pieces.append)
            else:
                await self._save(connection, stream, path, pieces, enough)
        self.content = pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _is_small(self, connection: Connection, stream: aiohttp.StreamReader) -> bool:
        """Whether the body came with the head, complete, and is what it is to be: then it is taken at once."""
        headers = self.response_headers
        return (
            stream.is_eof()
            and stream.total_bytes <= self._client.max_bytes
            and self.keep is None
            and "Content-Encoding" not in headers
            and stream.exception() is None
            and not connection.cut_short(headers)
        )

    async def _save(
        self,
        connection: Connection,
        stream: aiohttp.StreamReader,
        path: Path | None,
        pieces: list[bytes],
        enough: int | None,
    ) -> None:
        kept = 0
        with nullcontext() if path is None else PartFile(path) as part:

            def take(piece: bytes) -> None:
                nonlocal kept
                if part is not None:
                    part.write(piece)
                if enough is None or kept < enough:
                    pieces.append(piece)
                    kept += len(piece)

            await self._read(connection, stream, take)
        self.path = path

    def _path(self) -> Path | None:
        named = self.save_to(self.response()) if callable(self.save_to) else self.save_to
        return None if named is None else Path(named)

    async def _read(
        self, connection: Connection, stream: aiohttp.StreamReader, take: Callable[[bytes], None]
    ) -> None:
        """Give `take` the decoded body piece by piece, and count it in `size`."""
        headers = self.response_headers
        most = self._client.max_bytes
        if int(headers.get("Content-Length", 0)) > most and not stream.at_eof():
            raise self._too_large()
        decoder = None
        if "Content-Encoding" in headers and not stream.at_eof():
            # Without a body, as in an answer to HEAD, any encoding may be named.
            decoder = Decoder(", ".join(headers.getall("Content-Encoding")))
        try:
            while not stream.at_eof():
                data = await stream.readany()
                for piece in (data,) if decoder is None else decoder.feed(data):
                    self.size += len(piece)
                    if self.size > most:
                        raise self._too_large()
                    take(piece)
                    if len(piece) > _SLICE and decoder is not None:
                        # Inflating is work: the other requests get their turn between two pieces.
                        await asyncio.sleep(0)
        except aiohttp.ClientPayloadError:
            raise self._cut_short() from None
        if connection.cut_short(headers):
            raise self._cut_short()
        if decoder is not None:
            decoder.finish()

    # Failures

    def _too_large(self) -> TooLarge:
        most = self._client.max_bytes
        return TooLarge(f"body is larger than {most} bytes", hint="raise max_bytes= to allow it")

    def _cut_short(self) -> ConnectionLost:
        headers = self.response_headers
        expected = None if "Content-Encoding" in headers else headers.get("Content-Length")
        whole = "" if expected is None else f" of {expected}"
        return ConnectionLost(f"body cut short after {self.size}{whole} bytes", retryable=self.idempotent)

    def _timed_out(self) -> TimedOut:
        # Also the wait for a connection, where a redirect leads to a host that has no more to give.
        connecting = self._connection is None
        if connecting:
            what = "connecting"
        else:
            what = "without an answer" if self.status is None else f"with {self.size} bytes of the body read"
        # What was not sent may be sent again.
        again = self.idempotent or (connecting and not self._redirected)
        return TimedOut(f"timed out after {self.timeout:g} s {what}", retryable=again)

    def _failure(self, error: Exception) -> ClientError:
        """The error of the client's own hierarchy for one of aiohttp's, with the decision whether to try again."""
        match error:
            case aiohttp.ClientConnectionResetError():
                # aiohttp refused to write to it: nothing was sent.
                return ConnectionLost("the connection was closed before the request", retryable=True)
            case aiohttp.ClientConnectorDNSError():
                again = error.os_error.errno not in _UNKNOWN_HOST
                return ConnectionFailed(cause(error), retryable=again)
            case aiohttp.ClientConnectorCertificateError():
                hint = "if its authority is to be trusted, let SSL_CERT_FILE name the authority's certificate"
                if getattr(error.certificate_error, "verify_code", None) not in _UNKNOWN_AUTHORITY:
                    hint = ""
                return ConnectionFailed(cause(error), hint=hint)
            case aiohttp.ClientConnectorSSLError() | aiohttp.ClientSSLError():
                return ConnectionFailed(cause(error), retryable=isinstance(error.os_error, ssl.SSLEOFError))
            case aiohttp.ClientHttpProxyError():
                hint = "put the credentials into the proxy's URL" if error.status == 407 else ""
                return ConnectionFailed(cause(error), hint=hint, retryable=error.status in RETRIED)
            case aiohttp.ServerTimeoutError():
                return ConnectionFailed("connecting timed out", retryable=True)
            case aiohttp.ClientConnectorError():
                return ConnectionFailed(cause(error), retryable=True)
            case HttpProcessingError():
                return InvalidAnswer(cause(error))
            case _ if self._connection is None:
                # A proxy that hung up instead of leading on.
                return ConnectionFailed(cause(error), retryable=True)
            case _:
                return ConnectionLost(cause(error), retryable=self.idempotent or self._connection.unheard)


async def _unblocking(size: int, step: Callable[[], T]) -> T:
    """Do a step that reads or writes so many bytes of a file: in a thread, where the loop would feel it."""
    return step() if size <= _AT_ONCE else await asyncio.to_thread(step)


def _target(url: URL, location: str) -> URL:
    """Where a redirect leads; `RedirectError` if that is not an address to follow."""
    try:
        return parse(str(url.join(URL(location))))
    except ValueError:
        raise RedirectError("redirected to an address that is not http or https") from None


def _leaves(url: URL, target: URL) -> bool:
    """Whether a redirect leads where the request's secrets are nobody's business."""
    if url.origin() == target.origin():
        return False
    upgraded = url.scheme == "http" and target.scheme == "https" and url.host == target.host
    return not (upgraded and url.is_default_port() and target.is_default_port())
