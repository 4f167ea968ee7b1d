"""The commands as a person runs them: a real process, real servers on 127.0.0.1."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

# Where the loop is not compiled, the one line that says so would stand between the lines compared here.
ENVIRONMENT = {
    **os.environ,
    "PYTHONWARNINGS": "ignore:unwait's compiled event loop:RuntimeWarning",
    "PYTHONUNBUFFERED": "1",
    "COLUMNS": "100",
}
ENVIRONMENT.pop("FORCE_COLOR", None)
ENVIRONMENT.pop("PYTHONASYNCIODEBUG", None)

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    return ENVIRONMENT


@pytest.fixture
def python(environment: dict[str, str]) -> Command:
    """Runs this interpreter; options are those of `subprocess.run`, and `env` adds to the environment."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"capture_output": True, "text": True, "timeout": 60, **options}
        options["env"] = {**environment, **options.get("env", {})}
        return subprocess.run([sys.executable, *arguments], **options)

    return run


@pytest.fixture
def unwait(python: Command) -> Command:
    """Runs the `unwait` command with arguments."""
    return lambda *arguments, **options: python("-m", "unwait", *arguments, **options)


class Site:
    """A web server in a thread, for a command to fetch from."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.asked_to_hold = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> "Site":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        app = web.Application()
        routes: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
            "/hold": self._hold,
            "/missing": self._missing,
            "/{path:.*}": self._page,
        }
        for path, handler in routes.items():
            app.router.add_get(path, handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._ready.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()

    async def _page(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        return web.Response(text=f"page [bold]{request.path}[/] \x1b[2J größer")

    async def _hold(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x" * 10_000)
        self.asked_to_hold.set()
        await self._stop.wait()
        return response

    async def _missing(self, request: web.Request) -> web.Response:
        raise web.HTTPNotFound


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as running:
        yield running
