"""aiohttp's pool of connections and its parser, and what a client learns from them.

A request is written to, and its answer read from, a connection of aiohttp's connector, without aiohttp's session.
That would send a request again by itself when a connection turns out to be dead, would say neither that it did nor
whether the connection had served before or a byte of the answer had come, and costs half the time of a small
request. Here, what is repeated is the client's decision, and each request that is sent counts.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict
from yarl import URL

from unwait.web.environment import Environment

_UNBOUNDED = aiohttp.ClientTimeout(total=None, sock_connect=None)
_ROUTES = 1024  # origins whose way is remembered
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_OURS = frozenset(("content-length", "transfer-encoding", "expect", "upgrade"))


class Connection(ResponseHandler):
    """aiohttp's end of a connection, which remembers how often it was used and what it heard."""

    requests = 0
    heard = False  # a byte, since the last request
    idle = False  # the last answer is complete, and no request was sent since
    broken = False  # ended otherwise than by the other side's orderly close

    @property
    def unheard(self) -> bool:
        """Whether it served before and is silent since the last request: if it ended, the server closed it as idle."""
        return self.requests > 1 and not self.heard

    def send(self, method: str, head: bytes, body: bytes | None) -> None:
        """Write a request; aiohttp.ClientConnectionResetError, with nothing written, if the connection has ended."""
        transport = self.transport
        if transport is None or transport.is_closing():
            raise aiohttp.ClientConnectionResetError("the connection has ended")
        self.requests += 1
        self.heard = self.idle = False
        self.set_response_params(skip_payload=method == "HEAD", read_until_eof=True, auto_decompress=False)
        if body:
            transport.writelines((head, body))
        else:
            transport.write(head)

    async def answer(self) -> tuple[Any, aiohttp.StreamReader]:
        """The status line with the headers, and the body."""
        while True:
            message, payload = await self.read()
            if message.code >= 200 or message.code == 101:
                return message, payload

    def cut_short(self, headers: Mapping[str, str]) -> bool:
        """Whether the body, if only the connection's end tells its length, was ended by a break of the connection."""
        return self.broken and not ("Content-Length" in headers or "Transfer-Encoding" in headers)

    def data_received(self, data: bytes) -> None:
        if self.idle:
            # Nobody asked for it, and it must not become the answer to what is asked next.
            if self.transport is not None:
                self.transport.abort()
            return
        self.heard = True
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.broken = exc is not None
        super().connection_lost(exc)


class Route:
    """The way to an origin: through which proxy, and how requests on it begin."""

    __slots__ = ("_fields", "_headers", "absolute", "authorization", "host", "request")

    def __init__(
        self,
        url: URL,
        environment: Environment,
        headers: CIMultiDict[str],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        # Most requests have these headers, and no others.
        self._headers = headers
        self._fields = _lines(headers)
        proxy = environment.proxy(url)
        secure = url.scheme == "https"
        authorization = None if proxy is None else proxy.authorization
        self.host = url.host_port_subcomponent or ""
        self.absolute = proxy is not None and not secure
        self.authorization = authorization if self.absolute else None
        proxy_headers = None
        if secure and authorization is not None:
            # With the Host that the connector would add: what it adds it would take for another proxy.
            proxy_headers = CIMultiDict({"Proxy-Authorization": authorization, "Host": self.host})
        # What aiohttp's connector is asked with. It is never sent.
        self.request = aiohttp.ClientRequest(
            "GET",
            url.origin(),
            loop=loop,
            proxy=None if proxy is None else proxy.url,
            proxy_headers=proxy_headers,
            ssl=environment.tls() if secure or (proxy is not None and proxy.url.scheme == "https") else True,
        )

    def head(self, method: str, url: URL, headers: CIMultiDict[str], body: bytes | None) -> bytes:
        """The head of a request."""
        target = str(url.with_fragment(None)) if self.absolute else url.raw_path_qs
        host = "" if "Host" in headers else f"Host: {self.host}\r\n"
        fields = self._fields if headers is self._headers else _lines(headers)
        if self.authorization is not None:
            fields += f"Proxy-Authorization: {self.authorization}\r\n"
        if body is not None or method in ("POST", "PUT", "PATCH"):
            fields += f"Content-Length: {len(body or b'')}\r\n"
        return f"{method} {target} HTTP/1.1\r\n{host}{fields}\r\n".encode()


class Connector(aiohttp.TCPConnector):
    """A pool with at most `per_host` connections to one host, 0 for any number, for the running loop.

    `headers` are those that requests have if they need no others.
    """

    def __init__(self, per_host: int, environment: Environment, headers: CIMultiDict[str]) -> None:
        # Requests wait for their limits before they get here. What this bounds is where redirects lead.
        super().__init__(limit=0, limit_per_host=per_host)
        factory: Callable[..., ResponseHandler] = Connection
        self._factory = partial(factory, loop=asyncio.get_running_loop())
        self._environment = environment
        self._headers = headers
        self._routes: dict[str, Route] = {}

    def route(self, url: URL) -> Route:
        """The way to the URL. Raises `ConnectionFailed` where the environment names one that cannot be used."""
        key = f"{url.scheme}:{url.raw_authority}"
        route = self._routes.get(key)
        if route is None:
            if len(self._routes) >= _ROUTES:
                del self._routes[next(iter(self._routes))]
            self._routes[key] = route = Route(
                url, self._environment, self._headers, asyncio.get_running_loop()
            )
        return route

    async def connection(self, route: Route) -> aiohttp.connector.Connection:
        """A connection, which is to be released or closed; its `protocol` is a `Connection`."""
        return await self.connect(route.request, [], _UNBOUNDED)


def _lines(headers: CIMultiDict[str]) -> str:
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()])


def check_method(method: str) -> str:
    """The method in upper case. Raises ValueError for what is none."""
    if not _TOKEN.fullmatch(method) or method.upper() == "CONNECT":
        raise ValueError(f"not a method for a request: {method[:40]!r}")
    return method.upper()


def check_headers(headers: Mapping[str, str]) -> None:
    """Raises ValueError for headers that would break the request, or that the client itself sets."""
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError("the names and values of headers are text")
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"not a name for a header: {name[:40]!r}")
        if _CONTROL.search(value):
            raise ValueError(
                f"the value of the header {name} has a line break or another control character in it"
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the value of the header {name} has half a character in it (a lone surrogate)"
            ) from None
        if name.lower() in _OURS:
            raise ValueError(f"the header {name} is not for the caller to set")
