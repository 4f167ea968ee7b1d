"""Web servers on 127.0.0.1, on the loop of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Any]


@asynccontextmanager
async def running(app: web.Application) -> AsyncIterator[str]:
    """The address of a server of this application."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """The address of a server that answers every GET by this handler."""
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    async with running(app) as address:
        yield address
