"""Real servers on 127.0.0.1 for what `unwait.web` fetches from, on both event loops."""

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trustme
from aiohttp import web

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
    """`async with serve({path: handler}) as base`: an aiohttp server; `tls` is its context."""

    @asynccontextmanager
    async def serving(
        routes: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]],
        tls: ssl.SSLContext | None = None,
    ) -> AsyncIterator[str]:
        app = web.Application()
        for path, handler in routes.items():
            app.router.add_get(path, handler)
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


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    """The context of a server whose certificate is good for 127.0.0.1, for those who trust `authority`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context
