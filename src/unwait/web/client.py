"""An HTTP client that keeps to limits, retries what may be retried, and loses nothing.

What is retried. A connection that could not be made, or that the server closed while it was idle, before a byte of
this answer came: any method, because the request was not processed. 429: any method, because the server says that it
turned the request away. Every other break of a connection, time-out, and 408, 425, 500, 502, 503 and 504: idempotent
methods only, and others where the caller says that they are (`idempotent=True`, or a header `Idempotency-Key`).
Never: an unknown host, a certificate that is not trusted, an answer that is no HTTP, too large, or redirects too far.
"""

from __future__ import annotations

import asyncio
import copy
import json as jsonlib
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict, Unpack
from urllib.parse import urlencode

from multidict import CIMultiDict

from unwait.flow.calls import call
from unwait.flow.faults import is_overload, retry_after
from unwait.flow.limits import Limits, as_limits
from unwait.flow.retry import Retry, RetryBudget
from unwait.version import __version__
from unwait.web.breaker import Breaker
from unwait.web.cache import Cache
from unwait.web.connector import Connector, check_headers, check_method
from unwait.web.deadline import Deadline
from unwait.web.encoding import ACCEPTED
from unwait.web.environment import Environment
from unwait.web.errors import IDEMPOTENT, ClientError, InvalidURL, TimedOut
from unwait.web.exchange import Exchange, Refused, SaveTo
from unwait.web.headers import quotas
from unwait.web.response import Response
from unwait.web.urls import host, parse, redact

Params = (
    Mapping[str, str | int | float | Sequence[str | int | float]] | Sequence[tuple[str, str | int | float]]
)
Form = bytes | str | Mapping[str, str] | Sequence[tuple[str, str]]


_FAR = 600.0  # s; without a total, who is told to come back later than that does not keep the others waiting


class Options(TypedDict, total=False):
    """What every request takes; see `Client.request`."""

    params: Params | None
    headers: Mapping[str, str] | None
    json: Any
    data: Form | None
    timeout: float | None
    retry: Retry | int | None
    cost: float
    idempotent: bool | None
    save_to: SaveTo | None
    keep: int | None


class Client:
    """Requests over one pool of connections: `async with Client() as client: await client.get(url)`.

    `limits` (shareable with other clients and with `map`) and `per_host` bound the attempts: `per_host` is how many
    run at the same time for one host and port, None for any number. The key of `limits` with `per=` is the URL.
    `retry` is a number of retries or a `Retry`, None or 0 for none. `timeout` bounds one attempt with its redirects
    and its body, `total` the whole request with retries and waiting; both in seconds. `max_bytes` bounds each
    decoded body, `max_redirects` how many are followed; with 0, the redirect itself is the answer. `headers` go with
    every request; those that look like secrets do not follow a redirect to another origin. `cache` is the directory
    of a cache on disk, or a `Cache`. `breaker` leaves a host alone for a while that only fails; a request for it
    fails at once and is retried when the host is asked again. `deduplicate` makes GETs for the same that are in
    flight at the same time one request.

    Proxies and certificate authorities come from the environment, see `unwait.web.environment`. No cookies are kept.

    A client belongs to the loop on which it was entered. When it is closed, requests under way fail.
    Raises ValueError for bounds that are not positive.
    """

    def __init__(
        self,
        *,
        limits: Limits | Sequence[Limits] | None = None,
        per_host: int | None = 100,
        retry: Retry | int | None = 5,
        timeout: float = 60.0,
        total: float | None = 600.0,
        max_bytes: int = 50 << 20,
        max_redirects: int = 10,
        headers: Mapping[str, str] | None = None,
        cache: Cache | Path | str | None = None,
        breaker: Breaker | bool = True,
        deduplicate: bool = True,
    ) -> None:
        if not timeout > 0 or (total is not None and not total > 0) or max_bytes < 1 or max_redirects < 0:
            raise ValueError("timeout, total and max_bytes must be positive, and max_redirects not negative")
        if per_host is not None and per_host < 1:
            raise ValueError("per_host must be positive, or None for any number of attempts at the same time")
        given = tuple(as_limits(limits))
        self.limits: Sequence[Limits] = given
        self._per_host = per_host
        # Who is told to come back after the total would wait for nothing: these limits don't keep it waiting.
        self._patience = patience = _FAR if total is None else total
        self._host_limits = Limits(
            concurrency=per_host,
            per=host,
            overload=lambda error: is_overload(error) and (retry_after(error) or 0) < patience,
        )
        self._bounds = (*given, self._host_limits)
        self._total = total
        self._budget = RetryBudget()
        self._retry = self._policy(retry)
        self._timeout = timeout
        self.max_bytes = max_bytes
        self.max_redirects = max_redirects
        self._headers = CIMultiDict(
            {"User-Agent": f"unwait/{__version__}", "Accept": "*/*", "Accept-Encoding": ACCEPTED}
        )
        check_headers(headers or {})
        self._headers.update(headers or {})
        self.cache = cache if cache is None or isinstance(cache, Cache) else Cache(cache)
        self.breaker = (Breaker() if breaker else None) if isinstance(breaker, bool) else breaker
        self._deduplicate = deduplicate
        self._flights: dict[Any, list[asyncio.Future[Response | ClientError | None]]] = {}
        self.closed = True
        self.loop: asyncio.AbstractEventLoop
        self.connector: Connector

    def _policy(self, retry: Retry | int | None) -> Retry | None:
        if retry is None or isinstance(retry, Retry):
            return retry
        # With the total known, a delay that would exceed it is not begun: the last answer is returned instead.
        return Retry(retry, total=self._total, budget=self._budget)

    def observe(self, url: str, headers: Mapping[str, str], age: float) -> None:
        """Tell the limits what the headers of an answer say is left of the server's own; it took `age` seconds.

        The caller's limits know more of the server's than those of the host, which hear of it where there are none.
        """
        if "limit" not in "".join(headers).lower():
            return
        requests, tokens = quotas(headers)
        if requests is None and tokens is None:
            return
        for limits in self.limits:
            limits.observe(url, requests=requests, tokens=tokens)
        resets = (quota.reset for quota in (requests, tokens) if quota is not None)
        if not self.limits and all((reset or 0) < self._patience for reset in resets):
            self._host_limits.observe(url, requests=requests, tokens=tokens, age=age)

    # Its life

    async def __aenter__(self) -> Client:
        if not self.closed:
            raise RuntimeError("this client is open already; make one client for each `async with`")
        self.loop = asyncio.get_running_loop()
        self.connector = Connector(self._per_host or 0, Environment(), self._headers)
        self.closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.closed = True
        await self.connector.close()

    # Requests

    async def get(self, url: str, **options: Unpack[Options]) -> Response:
        """`request` with GET."""
        return await self.request("GET", url, **options)

    async def head(self, url: str, **options: Unpack[Options]) -> Response:
        """`request` with HEAD."""
        return await self.request("HEAD", url, **options)

    async def options(self, url: str, **options: Unpack[Options]) -> Response:
        """`request` with OPTIONS."""
        return await self.request("OPTIONS", url, **options)

    async def post(self, url: str, **options: Unpack[Options]) -> Response:
        """`request` with POST."""
        return await self.request("POST", url, **options)

    async def put(self, url: str, **options: Unpack[Options]) -> Response:
        """`request` with PUT."""
        return await self.request("PUT", url, **options)

    async def patch(self, url: str, **options: Unpack[Options]) -> Response:
        """`request` with PATCH."""
        return await self.request("PATCH", url, **options)

    async def delete(self, url: str, **options: Unpack[Options]) -> Response:
        """`request` with DELETE."""
        return await self.request("DELETE", url, **options)

    async def request(
        self,
        method: str,
        url: str,
        *,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        data: Form | None = None,
        timeout: float | None = None,
        retry: Retry | int | None = None,
        cost: float = 0,
        idempotent: bool | None = None,
        save_to: SaveTo | None = None,
        keep: int | None = None,
    ) -> Response:
        """The answer to a request, whatever its status; raises a `ClientError` where there is none.

        `params` are added to the URL's query. The body is `json`, or `data`: bytes, text, or the fields of a form.
        `timeout` and `retry` replace the client's (`retry=0` for none). `cost` counts for token limits.
        `idempotent` says whether the request may be made twice, where the method does not.

        `save_to` names the file that the body of a 2xx answer goes to, visible when it is complete, or is a function
        that names it when given the response without its content. `keep` is how many bytes of the body `content`
        holds: all by default, with `save_to` none.

        Raises TypeError and ValueError for arguments that make no sense, RuntimeError if the client is not open.
        """
        if self.closed:
            raise RuntimeError("the client is not open; use it inside `async with Client() as client:`")
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("the client was opened on another event loop; open one on this loop")
        method = check_method(method)
        try:
            address = parse(url)
        except InvalidURL as error:
            error.method, error.url = method, redact(url)
            raise
        if params is not None:
            address = address.extend_query(params)
        # As they are, they are written at once; what they are is not looked at again.
        merged = self._headers
        if headers is not None or json is not None or data is not None:
            merged = CIMultiDict(merged)
            if headers is not None:
                check_headers(headers)
                merged.update(headers)
        body = _body(merged, json, data)
        if idempotent is None:
            idempotent = method in IDEMPOTENT or "Idempotency-Key" in merged
        if timeout is None:
            timeout = self._timeout
        elif not timeout > 0:
            raise ValueError(f"timeout is in seconds and must be positive; it is {timeout!r}")
        if keep is not None and keep < 0:
            raise ValueError(f"keep is a number of bytes and must not be negative; it is {keep!r}")
        policy = self._retry if retry is None else self._policy(retry)
        exchange = Exchange(self, method, address, merged, body, timeout, idempotent, save_to, keep)
        if method != "GET" or body is not None or save_to is not None or not self._deduplicate:
            answering = self._perform(exchange, policy, cost)
        else:
            own = () if exchange.headers is self._headers else tuple(sorted(exchange.headers.items()))
            key = (exchange.text, timeout, keep, retry, idempotent, own)
            answering = self._share(key, exchange, policy, cost)
        # Around the sharing: who joins late has the whole of it, and who leads for others no more than that.
        return await (answering if self._total is None else self._within(self._total, answering, exchange))

    async def _perform(self, exchange: Exchange, policy: Retry | None, cost: float) -> Response:
        try:
            cached = await exchange.cached() if self.cache is not None else None
        except ClientError as unsaved:
            raise exchange.describe(unsaved) from None
        if cached is not None:
            return cached
        outcome = await call(exchange.attempt, exchange.text, limits=self._bounds, cost=cost, retry=policy)
        error = outcome.error
        if error is None or isinstance(error, Refused):
            return exchange.response(outcome.waited, outcome.elapsed)
        if isinstance(error, ClientError):
            error.waited = outcome.waited
            if policy is not None and policy.retries:
                # Whoever retries around this client is not to multiply its retries.
                error.retryable = False
            raise exchange.describe(error)
        raise error

    async def _within(
        self, total: float, answering: Coroutine[Any, Any, Response], exchange: Exchange
    ) -> Response:
        deadline = Deadline(self.loop, self.loop.time() + total)
        alone = None
        try:
            return await answering
        except asyncio.CancelledError:
            alone = deadline.close()
            if alone:
                raise exchange.describe(
                    TimedOut(f"not done within {total:g} s{exchange.last_answer()}")
                ) from None
            raise
        finally:
            if alone is None:
                deadline.close()

    async def _share(self, key: Any, exchange: Exchange, policy: Retry | None, cost: float) -> Response:
        """Perform the exchange, or wait for another one that is the same.

        Whoever comes first leads. A leader that is cancelled hands over to the first that waits, which begins anew.
        """
        waiting = self._flights.get(key)
        if waiting is None:
            self._flights[key] = waiting = []
        else:
            started = self.loop.time()
            turn: asyncio.Future[Response | ClientError | None] = self.loop.create_future()
            waiting.append(turn)
            try:
                shared = await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled() and turn.result() is None:
                    self._hand_over(key, waiting)
                raise
            if isinstance(shared, Response):
                return replace(shared, deduplicated=True, elapsed=self.loop.time() - started)
            if shared is not None:
                # Each raises its own: a traceback belongs to one task.
                raise copy.copy(shared)
        result: Response | ClientError | None = None
        try:
            result = await self._perform(exchange, policy, cost)
        except ClientError as error:
            result = copy.copy(error)
            raise
        finally:
            if result is None:
                self._hand_over(key, waiting)
            else:
                del self._flights[key]
                for turn in waiting:
                    if not turn.done():
                        turn.set_result(result)
        return result

    def _hand_over(self, key: Any, waiting: list[asyncio.Future[Response | ClientError | None]]) -> None:
        while waiting:
            turn = waiting.pop(0)
            if not turn.done():
                turn.set_result(None)
                return
        del self._flights[key]


def _body(headers: CIMultiDict[str], json: Any, data: Form | None) -> bytes | None:
    """The bytes of a body; its content type joins the headers, if they name none."""
    if json is not None and data is not None:
        raise TypeError("a request has one body: json= or data=, not both")
    if json is not None:
        headers.setdefault("Content-Type", "application/json")
        try:
            return jsonlib.dumps(json, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            # Half a character (a lone surrogate): JSON can say it, UTF-8 cannot.
            return jsonlib.dumps(json, separators=(",", ":"), allow_nan=False).encode()
    if data is None:
        return None
    if isinstance(data, bytes):
        headers.setdefault("Content-Type", "application/octet-stream")
        return data
    if isinstance(data, str):
        headers.setdefault("Content-Type", "text/plain; charset=utf-8")
        return data.encode()
    if isinstance(data, Mapping | list | tuple):
        headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
        return urlencode(data, doseq=True).encode()
    raise TypeError(f"data must be bytes, text or the fields of a form, not {type(data).__name__}")
