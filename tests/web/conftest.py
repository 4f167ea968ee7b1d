"""Real servers on 127.0.0.1 for what `unwait.web` fetches from, on both event loops."""

import asyncio
import inspect
import ssl
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trustme
from aiohttp import web
from yarl import URL

import unwait

Serve = Callable[..., AbstractAsyncContextManager[str]]


def _unwait_loop() -> asyncio.AbstractEventLoop:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unwait's compiled event loop", RuntimeWarning)
        return unwait.new_event_loop()


@pytest.fixture(params=[_unwait_loop, asyncio.SelectorEventLoop], ids=["unwait", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine on a fresh loop, once on ours and once on asyncio's."""

    def run_on_loop(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(main)

    return run_on_loop


@pytest.fixture
def serve() -> Serve:
    """`async with serve({path: handler}) as base`: an aiohttp server; `tls` is its context, `method` what it takes."""

    @asynccontextmanager
    async def serving(
        routes: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]],
        tls: ssl.SSLContext | None = None,
        method: str = "GET",
    ) -> AsyncIterator[str]:
        app = web.Application(client_max_size=8 << 20)
        for path, handler in routes.items():
            # aiohttp takes functions; an object with a state may be one too.
            function = handler if inspect.iscoroutinefunction(handler) else handler.__call__
            app.router.add_get(path, function) if method == "GET" else app.router.add_route(
                method, path, function
            )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    return serving


@pytest.fixture
def serve_raw() -> Serve:
    """`async with serve_raw(reply) as base`: reads one request head, awaits `reply(writer)`, closes."""

    @asynccontextmanager
    async def serving(reply: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"\r\n\r\n")
                await reply(writer)
                await writer.drain()
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    return serving


@pytest.fixture
def serve_wire() -> Serve:
    """`async with serve_wire(talk) as base`: `await talk(reader, writer)` for each connection, which is then closed."""

    @asynccontextmanager
    async def serving(
        talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
        tls: ssl.SSLContext | None = None,
    ) -> AsyncIterator[str]:
        talking: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            talking.add(task)
            try:
                await talk(reader, writer)
                await writer.drain()
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                talking.discard(task)
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in list(talking):
                task.cancel()
            await asyncio.gather(*talking, return_exceptions=True)
            await asyncio.sleep(0)

    return serving


@dataclass
class ForwardProxy:
    """A proxy that forwards absolute-form requests and tunnels CONNECT, and remembers what it was asked."""

    address: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)  # method, target
    authorizations: list[str | None] = field(default_factory=list)
    password: str | None = None
    hang_up: bool = False

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, target, _ = head.split(" ", 2)
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        given = fields.get("Proxy-Authorization")
        self.requests.append((method, target))
        self.authorizations.append(given)
        if self.hang_up:
            return
        if self.password is not None and given != self.password:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        url = URL(f"//{target}" if method == "CONNECT" else target)
        there, sender = await asyncio.open_connection(url.host, url.port)
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                kept = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if "roxy" not in name)
                sender.write(f"{method} {url.path_qs} HTTP/1.1\r\n{kept}Connection: close\r\n\r\n".encode())
            back = asyncio.create_task(self._pump(there, writer))
            await self._pump(reader, sender)
            await back
        finally:
            sender.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@pytest.fixture
def serve_proxy(serve_wire: Serve) -> Callable[..., AbstractAsyncContextManager[ForwardProxy]]:
    """`async with serve_proxy(password=…, hang_up=…) as proxy`: `proxy.address` is its URL."""

    @asynccontextmanager
    async def serving(**options: Any) -> AsyncIterator[ForwardProxy]:
        proxy = ForwardProxy(**options)
        async with serve_wire(proxy.talk) as proxy.address:
            yield proxy

    return serving


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    """The context of a server whose certificate is good for 127.0.0.1, for those who trust `authority`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context
