"""The commands as a person runs them: a real process, real servers on 127.0.0.1."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from aiohttp import web

if TYPE_CHECKING:
    from unwait.documents.model import Document

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
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


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


class Server:
    """A web server in a thread, for a command to fetch from."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def routes(self) -> dict[str, Handler]:
        raise NotImplementedError

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        app = web.Application()
        for path, handler in self.routes().items():
            app.router.add_route("*", path, handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._ready.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()


class Site(Server):
    """Pages, one that is never complete, and one that is missing."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []
        self.asked_to_hold = threading.Event()

    def routes(self) -> dict[str, Handler]:
        return {"/hold": self._hold, "/missing": self._missing, "/{path:.*}": self._page}

    async def _page(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        return web.Response(text=f"page [bold]{request.path}[/] \x1b[2J größer")

    async def _hold(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x" * 10_000)
        self.asked_to_hold.set()
        await self._stop.wait()
        return response

    async def _missing(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        raise web.HTTPNotFound


@dataclass(frozen=True)
class Received:
    """A request as the server saw it."""

    id: str
    method: str
    headers: Mapping[str, str]
    body: bytes
    at: float


class Api(Server):
    """An API that remembers what it was asked.

    /call/{id} answers 200 and JSON; ?statuses=503,200 are those of the first calls of the id, the last one stays.
    /hold/{id} answers when `release` was called. `on_call` is called for each request, before it is answered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received: list[Received] = []
        self.counts: Counter[str] = Counter()
        self.held = threading.Semaphore(0)
        self.on_call: Callable[[str], None] = lambda id: None
        self._released = asyncio.Event()
        self.answers: dict[str, web.Response] = {}

    def routes(self) -> dict[str, Handler]:
        return {"/call/{id}": self._call, "/hold/{id}": self._hold, "/answer/{id}": self._answer}

    async def _see(self, request: web.Request) -> str:
        id = request.match_info["id"]
        body = await request.read()
        self.received.append(Received(id, request.method, request.headers, body, time.monotonic()))
        self.counts[id] += 1
        self.on_call(id)
        return id

    async def _call(self, request: web.Request) -> web.Response:
        id = await self._see(request)
        statuses = request.query.get("statuses", "200").split(",")
        status = int(statuses[min(self.counts[id], len(statuses)) - 1])
        headers = {"Retry-After": "0"} if status == 429 else {}
        return web.json_response({"id": id, "status": status}, status=status, headers=headers)

    async def _hold(self, request: web.Request) -> web.Response:
        id = await self._see(request)
        self.held.release()
        await self._released.wait()
        return web.json_response({"id": id})

    async def _answer(self, request: web.Request) -> web.Response:
        id = await self._see(request)
        given = self.answers[id]
        return web.Response(body=given.body, headers={**given.headers}, status=given.status)

    def release(self) -> None:
        """Let what is held be answered, from now on at once."""
        self._loop.call_soon_threadsafe(self._released.set)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as running:
        yield running


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as running:
        yield running


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the `unwait` command and does not wait for it; whatever still runs after the test is killed."""
    running: list[subprocess.Popen[str]] = []

    def starting(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        options["env"] = {**environment, **options.get("env", {})}
        running.append(subprocess.Popen([sys.executable, "-m", "unwait", *arguments], **options))
        return running[-1]

    yield starting
    for process in running:
        with process:
            process.kill()


class Models(Server):
    """An embeddings endpoint that remembers what it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: set[str | None] = set()
        self.texts: list[str] = []

    def routes(self) -> dict[str, Handler]:
        return {"/v1/embeddings": self._embed}

    async def _embed(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.keys.add(request.headers.get("Authorization"))
        self.texts += asked["input"]
        data = [
            {"index": index, "object": "embedding", "embedding": [1.0, float(len(text)), 0.5]}
            for index, text in enumerate(asked["input"])
        ]
        usage = {"prompt_tokens": 7, "total_tokens": 7}
        return web.json_response({"object": "list", "data": data, "model": asked["model"], "usage": usage})


@pytest.fixture
def models() -> Iterator[Models]:
    with Models() as running:
        yield running


STEERING = "\x1b[2J\x07\u202e"  # what would clear a terminal, ring, and turn the line around


def document(uri: str, title: str, *chunks: tuple[tuple[str, ...], str], **parts: Any) -> Document:
    """A document of these chunks, each with its section; the vectors tell nothing."""
    import numpy as np

    from unwait.documents.model import Chunk, Document, Versions, digest

    made, end = [], 0
    for position, (section, text) in enumerate(chunks):
        made.append(Chunk(digest(uri, text), position, end, end + len(text), text, section))
        end += len(text)
    versions = Versions("chunks", "wordllama-256", "summary")
    vectors = np.eye(len(made), 256, dtype=np.float32)
    return Document(uri, "/origin", title, "html", digest(uri), versions, made, vectors, **parts)


async def _fill(path: Path) -> None:
    from unwait.documents.model import Failure, Record
    from unwait.documents.store import open_store

    keys = document(
        "https://docs.example/keys",
        f"Keys{STEERING}",
        ((f"Keys{STEERING}", "Rotation"), "To rotate a key, call rotate and wait.\n\n"),
        ((f"Keys{STEERING}", "Loss"), f"A lost key{STEERING}\0 is\ud800 gone."),
        summary=f"All about keys{STEERING}.",
        metadata={"lang": "en", "year": 2024},
        records=[
            Record(
                "Invoice", {"total": -5, "name": "=HYPERLINK(1)", "items": [{"n": 1}], "uri": "+1"}, 0, 12
            ),
            Record("Invoice", {"total": 7.5, "name": 'Größe, "x"', "paid": True, "note": None}, 12, 40),
        ],
    )
    note = document(
        str(path.parent / "notes" / "a.md"),
        "",
        ((), "Notes on timeouts."),
        metadata={"lang": "de"},
        records=[Record("Person", {"name": "Ada"}, 0, 5)],
    )
    async with open_store(str(path)) as store:
        run = await store.begin({"embed": "wordllama"})
        for each in (keys, note):
            await store.save(each, run)
        await store.fail(
            Failure(
                f"https://docs.example/gone{STEERING}", "/origin", "load", "not found", f"HTTP 404{STEERING}"
            ),
            run,
        )


@pytest.fixture
def knowledge(tmp_path: Path) -> Path:
    """A store with two documents, of which one would like to steer the terminal, and a failure."""
    path = tmp_path / "kb.db"
    asyncio.run(_fill(path))
    return path


@pytest.fixture
def on_terminal(environment: dict[str, str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the `unwait` command with stdout or stderr on a terminal: its exit code, what appears there, the other."""

    def run(*arguments: str, stream: str = "stdout", **options: Any) -> tuple[int, str, str]:
        ours, theirs = pty.openpty()
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: theirs}
        env = {**environment, "TERM": "xterm", **options.pop("env", {})}
        with subprocess.Popen(
            [sys.executable, "-m", "unwait", *arguments], env=env, **streams, **options
        ) as process:
            os.close(theirs)
            seen = b""
            try:
                while data := os.read(ours, 65536):
                    seen += data
            except OSError:
                pass  # the other end is closed
            os.close(ours)
            other = process.stderr if stream == "stdout" else process.stdout
            assert other is not None
            rest = other.read()
        return process.returncode, seen.decode(), rest.decode()

    return run
