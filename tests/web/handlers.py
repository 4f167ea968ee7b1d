"""What servers do in tests of the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web


async def echo(request: web.Request) -> web.Response:
    """What the server saw."""
    return web.json_response(
        {
            "method": request.method,
            "path": request.path_qs,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": (await request.read()).decode("latin-1"),
        }
    )


class Script:
    """A handler that answers with one status after the other, then 200; it counts."""

    def __init__(self, *statuses: int, headers: dict[str, str] | None = None) -> None:
        self.statuses = list(statuses)
        self.headers = headers or {}
        self.seen = 0

    async def __call__(self, request: web.Request) -> web.Response:
        self.seen += 1
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(
            status=status, text=f"answer {self.seen}", headers=self.headers if status != 200 else {}
        )


class Gate:
    """A handler that holds its requests until `open` is set; it counts them."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.seen = 0
        self.inside = 0
        self.most = 0
        self.changed = asyncio.Condition()

    async def __call__(self, request: web.Request) -> web.Response:
        self.seen += 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        async with self.changed:
            self.changed.notify_all()
        try:
            await self.open.wait()
        finally:
            self.inside -= 1
        return web.Response(text=f"answer {self.seen}")

    async def reached(self, inside: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.inside >= inside)


@asynccontextmanager
async def idle_until_settled() -> AsyncIterator[None]:
    """Lets what was started inside run until it waits for something outside."""
    yield
    for _ in range(20):
        await asyncio.sleep(0)


def redirect(to: str, status: int = 302) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": to})

    return handler
