"""The journal: what is in it after each call, who may open it, and what becomes of it when it cannot be written."""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import resource
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from unwait.flow import journal_file
from unwait.flow.journal import (
    Journal,
    JournalBusy,
    JournalError,
    JournalMismatch,
    function_name,
)
from unwait.flow.journal_reader import JournalReader
from unwait.flow.journal_session import Session

FIGURES = {"attempts": 1, "waited": 0.25, "elapsed": 0.5}


class Observer:
    """What a session reported: the tags of each commit, and the failure."""

    def __init__(self) -> None:
        self.commits: list[list[Any]] = []
        self.failures: list[JournalError] = []

    @property
    def tags(self) -> list[Any]:
        return [tag for commit in self.commits for tag in commit]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


@pytest.fixture
def seen() -> Observer:
    return Observer()


@pytest.fixture
def opened(path: Path, seen: Observer) -> Callable[..., Session]:
    def open_session(function: str = "app.get", **options: Any) -> Session:
        return Journal(path, **options).session(function, seen.commits.append, seen.failures.append)

    return open_session


def rows(path: Path, query: str = "SELECT key FROM items ORDER BY id") -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] if len(row) == 1 else row for row in connection.execute(query)]


async def test_a_later_run_finds_what_an_earlier_one_stored(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session], seen: Observer
) -> None:
    first = opened()
    assert not first.resumes
    assert first.find("a") is None
    assert first.done("a", {"text": "größe", "n": [1, 2.5, None]}, "tag a", **FIGURES) == {
        "text": "größe",
        "n": [1, 2.5, None],
    }
    first.failed("b", ValueError("no such thing"), "tag b", attempts=3, waited=1.0, elapsed=2.0)
    await first.close()
    assert seen.tags == ["tag a", "tag b"]

    second = opened()
    assert second.resumes
    a, b = second.find("a"), second.find("b")
    assert a is not None
    assert b is not None
    assert (a.ok, a.value, a.error, a.attempts, a.elapsed) == (
        True,
        {"text": "größe", "n": [1, 2.5, None]},
        None,
        1,
        0.5,
    )
    assert (b.ok, b.value, b.error, b.attempts, b.elapsed) == (
        False,
        None,
        "ValueError: no such thing",
        3,
        2.0,
    )
    assert second.find("c") is None
    await second.close()


async def test_what_is_queued_is_found_before_it_is_committed(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session], path: Path, seen: Observer
) -> None:
    session = opened()
    session.done("a", [1], 1, **FIGURES)
    session.failed("b", OSError("x"), 2, **FIGURES)
    assert rows(path) == []
    a, b = session.find("a"), session.find("b")
    assert a is not None
    assert b is not None
    assert a.value == [1]
    assert b.error == "OSError: x"
    assert a.this_run
    assert b.this_run
    assert seen.commits == []
    await session.close()


async def test_an_item_is_reported_only_once_it_is_in_the_file(
    loop: asyncio.AbstractEventLoop, path: Path, seen: Observer
) -> None:
    in_file: list[bool] = []
    everything = asyncio.Event()

    def committed(tags: list[Any]) -> None:
        in_file.extend(tag in rows(path) for tag in tags)
        if len(in_file) == 50:
            everything.set()

    session = Journal(path).session("f", committed, seen.failures.append)
    for number in range(50):
        session.done(str(number), number, str(number), **FIGURES)
        if number % 7 == 0:
            await asyncio.sleep(0)
    # Nobody closes it: the writer commits on its own as soon as it has nothing else to do.
    await everything.wait()
    assert in_file == [True] * 50
    await session.close()


async def test_items_that_end_together_share_a_commit(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session], seen: Observer
) -> None:
    session = opened()
    for number in range(1000):
        session.done(str(number), number, number, **FIGURES)
    await session.close()
    assert seen.commits == [list(range(1000))]


async def test_closing_commits_and_reports_what_is_queued_and_may_be_repeated(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session], path: Path, seen: Observer
) -> None:
    session = opened()
    session.done("a", 1, "a", **FIGURES)
    closing_it = asyncio.ensure_future(session.close())
    await asyncio.sleep(0)
    closing_it.cancel()
    await session.close()
    assert seen.tags == ["a"]
    assert rows(path) == ["a"]
    await session.close()
    with pytest.raises(JournalError, match=r"run\.db is closed"):
        session.done("b", 1, "b", **FIGURES)
    with pytest.raises(JournalError, match=r"run\.db"):
        session.find("a")
    assert sorted(file.name for file in path.parent.iterdir()) == ["run.db"]


async def test_a_duplicate_in_one_run_is_told_from_an_item_of_an_earlier_run(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session], path: Path, seen: Observer
) -> None:
    def this_run(session: Session, key: str) -> bool | None:
        stored = session.find(key)
        return None if stored is None else stored.this_run

    first = opened()
    for number in range(20):
        first.done(f"old {number}", number, None, **FIGURES)
    first.failed("failed", OSError(), None, **FIGURES)
    await first.close()

    second = opened()
    assert [this_run(second, f"old {number}") for number in range(20)] == [False] * 20
    second.reused("old 8", "tag")
    second.done("failed", 1, None, **FIGURES)
    second.done("new", 1, None, **FIGURES)
    assert this_run(second, "failed")
    while len(seen.tags) < 24:
        await asyncio.sleep(0.001)
    # The same once they are committed.
    assert this_run(second, "failed")
    assert this_run(second, "new")
    assert this_run(second, "missing") is None
    reused = [number for number in range(20) if this_run(second, f"old {number}")]
    assert reused == [8]
    await second.close()
    assert seen.tags[21:] == ["tag", None, None]

    # Killed or not, the next run begins anew.
    third = opened()
    assert not any(this_run(third, key) for key in ("old 8", "failed", "new"))
    await third.close()


async def test_a_failed_item_that_is_done_in_a_later_run_has_one_row(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session], path: Path
) -> None:
    session = opened()
    session.failed("a", OSError(), None, **FIGURES)
    session.done("b", 1, None, **FIGURES)
    await session.close()
    session = opened()
    session.done("a", 2, None, **FIGURES)
    await session.close()
    assert rows(path, "SELECT key, state, value, error, run FROM items ORDER BY id") == [
        ("b", 1, b"1", None, 1),
        ("a", 1, b"2", None, 2),
    ]


async def test_errors_are_stored_short_and_without_secrets(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session], path: Path
) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    session = opened()
    session.failed("secret", OSError("GET https://me:hunter2@example.org?api_key=hunter2"), None, **FIGURES)
    session.failed("long", ValueError("x" * 10_000), None, **FIGURES)
    session.failed("unspeakable", Unspeakable(), None, **FIGURES)
    session.failed("surrogate", ValueError("\udcff"), None, **FIGURES)
    await session.close()
    errors = dict(rows(path, "SELECT key, error FROM items"))
    assert errors["secret"] == "OSError: GET https://***@example.org?api_key=***"
    assert errors["long"] == ("ValueError: " + "x" * 500)[:500]
    assert errors["unspeakable"] == "Unspeakable"
    assert errors["surrogate"] == "ValueError: \\udcff"
    assert not any(b"hunter2" in file.read_bytes() for file in path.parent.iterdir())


# Whose file it is.


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (
            "app.post",
            {},
            r"run\.db holds results of the function 'app\.get', and this run is of the function 'app\.post': "
            r"name another file, delete this one .*",
        ),
        (
            "app.get",
            {"version": "2"},
            r"of the version '1', and this run is of the version '2': .* or give version='1' if",
        ),
        (
            "app.get",
            {"codec": "pickle"},
            r"of the codec 'json', and this run is of the codec 'pickle': .* or use the codec 'json'",
        ),
    ],
)
async def test_a_journal_of_another_function_version_or_codec_is_refused(
    loop: asyncio.AbstractEventLoop,
    opened: Callable[..., Session],
    path: Path,
    function: str,
    options: dict[str, Any],
    message: str,
) -> None:
    session = opened(version="1")
    session.done("a", 1, None, **FIGURES)
    await session.close()
    with pytest.raises(JournalMismatch, match=message):
        opened(function, **{"version": "1", **options})
    # Nothing was changed, and nothing is held.
    assert [file.name for file in path.parent.iterdir()] == ["run.db"]
    assert rows(path, "SELECT max(run) FROM runs") == [1]
    await opened(version="1").close()


def foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE meta (name, value)")


def newer_journal(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(journal_file._SCHEMA)
        connection.execute(f"PRAGMA user_version = {journal_file.FORMAT + 1}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text('{"id": 1}\n' * 100), r"is no journal: it holds something else"),
        (lambda path: path.write_text("x"), r"is no journal: it holds something else"),
        (foreign_database, r"is no journal: it holds something else"),
        (newer_journal, r"written by a newer unwait \(format 2, this one knows 1\): update unwait"),
        (Path.mkdir, r"is no journal: it is a directory; name another file"),
        (os.mkfifo, r"is no journal: it is not a regular file; name another file"),
        (lambda path: path.symlink_to("nowhere/else"), r"cannot open the journal .*run\.db: "),
    ],
)
async def test_a_file_that_is_no_journal_is_refused_and_left_as_it_was(
    loop: asyncio.AbstractEventLoop,
    opened: Callable[..., Session],
    path: Path,
    make: Callable[[Path], None],
    message: str,
) -> None:
    make(path)
    before = path.read_bytes() if path.is_file() else None
    for attempt in (opened, lambda: JournalReader(path)):
        with pytest.raises(JournalError, match=message if attempt is opened else r"run\.db"):
            attempt()
    assert (path.read_bytes() if path.is_file() else None) == before
    assert [file.name for file in path.parent.iterdir()] == ["run.db"]


async def test_a_path_where_no_file_can_be_made_is_told(
    loop: asyncio.AbstractEventLoop, tmp_path: Path, seen: Observer
) -> None:
    for path in (tmp_path / "missing" / "run.db", Path("/proc/run.db"), tmp_path / ("x" * 300)):
        with pytest.raises(JournalError, match=rf"cannot open the journal {path}: \w+"):
            Journal(path).session("f", seen.commits.append, seen.failures.append)


async def test_a_damaged_journal_is_told(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session], path: Path
) -> None:
    await opened().close()
    content = bytearray(path.read_bytes())
    content[100:8192] = b"\xff" * (8192 - 100)
    path.write_bytes(content)
    with pytest.raises(
        JournalError, match=r"cannot open the journal .*run\.db: database disk image is malformed"
    ):
        opened()
    with pytest.raises(
        JournalError, match=r"cannot read the journal .*run\.db: database disk image is malformed"
    ):
        JournalReader(path)


async def test_an_empty_file_becomes_a_journal(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session], path: Path
) -> None:
    path.touch()
    with pytest.raises(JournalMismatch, match="it is empty"):
        JournalReader(path)
    session = opened()
    session.done("a", 1, None, **FIGURES)
    await session.close()
    assert rows(path) == ["a"]


async def test_a_file_that_a_killed_run_was_making_is_gone_on_with(
    loop: asyncio.AbstractEventLoop,
    opened: Callable[..., Session],
    path: Path,
    tmp_path: Path,
    seen: Observer,
) -> None:
    # The schema is there, and no run has begun.
    journal_file.open_to_write(str(path)).close()
    with pytest.raises(JournalMismatch, match="no journal yet: no run has begun"):
        JournalReader(path)
    await opened().close()

    # Killed in the middle of a commit, before WAL mode: SQLite has pages to take back.
    with closing(sqlite3.connect(tmp_path / "whole.db", isolation_level=None)) as connection:
        connection.executescript(journal_file._SCHEMA)
        connection.executescript("PRAGMA cache_size = 1; BEGIN;")
        for number in range(50):
            connection.execute("INSERT INTO meta VALUES (?, ?)", (number, "x" * 4000))
        for suffix in ("", "-journal"):
            shutil.copy(tmp_path / f"whole.db{suffix}", tmp_path / f"half.db{suffix}")
    with pytest.raises(
        JournalMismatch, match=r"half\.db is no journal yet: the run that was making it was killed"
    ):
        JournalReader(tmp_path / "half.db")
    await Journal(tmp_path / "half.db").session("f", seen.commits.append, seen.failures.append).close()
    with JournalReader(tmp_path / "half.db") as journal:
        assert len(journal.runs()) == 1

    # Killed in the commit itself, when it had written the first page: the log says that the file was empty.
    with closing(sqlite3.connect(tmp_path / "begun.db", isolation_level=None)) as connection:
        connection.executescript(f"BEGIN; {journal_file._SCHEMA} COMMIT;")
    os.truncate(tmp_path / "begun.db", 4096)
    magic = bytes.fromhex("d9d505f920a163d7")
    (tmp_path / "begun.db-journal").write_bytes(
        (magic + struct.pack(">5I", 0, 1, 0, 512, 4096)).ljust(512, b"\0")
    )
    with pytest.raises(
        JournalMismatch, match=r"begun\.db is no journal yet: the run that was making it was killed"
    ):
        JournalReader(tmp_path / "begun.db")
    await Journal(tmp_path / "begun.db").session("f", seen.commits.append, seen.failures.append).close()
    with JournalReader(tmp_path / "begun.db") as journal:
        assert len(journal.runs()) == 1


async def test_a_journal_can_be_read_where_no_file_can_be_made_beside_it(
    loop: asyncio.AbstractEventLoop, seen: Observer
) -> None:
    # Not tmp_path: no other user can enter that.
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "run.db")
        session = Journal(path).session("f", seen.commits.append, seen.failures.append)
        session.done("a", 1, None, **FIGURES)
        await session.close()
        path.parent.chmod(0o555)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            with JournalReader(path) as journal:
                assert [item.key for item in journal.items()] == ["a"]
            with pytest.raises(JournalError, match=r"cannot open the journal .*run\.db: Permission denied"):
                Journal(path).session("f", seen.commits.append, seen.failures.append)
        finally:
            os.seteuid(user)
            path.parent.chmod(0o755)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": ""}, TypeError, "not empty"),
        ({"path": b"run.db"}, TypeError, "a str or a path"),
        ({"version": 1}, TypeError, "version is a str"),
        ({"codec": "yaml"}, ValueError, 'no codec is named \'yaml\': "json", "pickle", or'),
        ({"codec": pickle}, TypeError, "a codec is"),
    ],
)
def test_a_journal_with_nonsense_parameters_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Journal(**{"path": "run.db", **options})


# One process writes.


async def test_a_second_run_in_the_same_process_is_refused_and_takes_nothing_from_the_first(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session], path: Path, seen: Observer
) -> None:
    session = opened()
    session.done("a", 1, "a", **FIGURES)
    link = path.with_name("link.db")
    link.symlink_to(path)
    for other in (path, link):
        with pytest.raises(
            JournalBusy, match=rf"\w\.db is being written by another run \(pid {os.getpid()}\): wait"
        ):
            Journal(other).session("app.get", seen.commits.append, seen.failures.append)
    with JournalReader(path):
        pass
    # Had a descriptor of the file been closed just now, this process's locks would be gone with it: another one
    # would then take itself for the last that has the file open, and delete the log that the run writes into.
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('select * from items'); c.close()"
    )
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program, path], check=True)
    assert path.with_name("run.db-wal").exists()
    session.done("b", 1, "b", **FIGURES)
    await session.close()
    assert rows(path) == ["a", "b"]
    await opened().close()


HOLDER = """
import asyncio, sys
from unwait.flow.journal import Journal

async def main():
    session = Journal(sys.argv[1]).session("app.get", lambda tags: print("committed", flush=True), print)
    session.done("held", 1, None, attempts=1, waited=0.0, elapsed=0.0)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_run_in_another_process_keeps_the_file_until_it_is_gone(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session], path: Path
) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore::RuntimeWarning"}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, env=environment
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"committed\n"
            with pytest.raises(
                JournalBusy, match=rf"run\.db is being written by another run \(pid {holder.pid}\): wait"
            ):
                opened()
            with JournalReader(path) as journal:
                assert journal.count() == (1, 0)
                assert [(run.pid, run.running, run.ended) for run in journal.runs()] == [
                    (holder.pid, True, False)
                ]
        finally:
            holder.send_signal(signal.SIGKILL)
    with JournalReader(path) as journal:
        assert [(run.pid, run.running, run.ended) for run in journal.runs()] == [(holder.pid, False, False)]
    session = opened()
    assert session.find("held") is not None
    await session.close()


# What cannot be written.


async def test_a_locked_file_breaks_the_run_and_loses_nothing_reported(
    loop: asyncio.AbstractEventLoop,
    opened: Callable[..., Session],
    path: Path,
    seen: Observer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_file, "BUSY_SECONDS", 0.05)
    session = opened()
    session.done("a", 1, "a", **FIGURES)
    while not seen.commits:
        await asyncio.sleep(0.001)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        session.done("b", 1, "b", **FIGURES)
        while not seen.failures:
            await asyncio.sleep(0.001)
    with pytest.raises(JournalError, match=r"cannot write the journal .*run\.db: database is locked"):
        session.done("c", 1, "c", **FIGURES)
    with pytest.raises(JournalError):
        session.find("a")
    await session.close()
    assert seen.tags == rows(path) == ["a"]
    assert [str(failure) for failure in seen.failures] == [
        f"cannot write the journal {path}: database is locked; what was reported as done is in it, and the "
        "same run again goes on from there"
    ]
    await opened().close()


async def test_a_full_disk_breaks_the_run_and_loses_nothing_reported(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session], path: Path, seen: Observer
) -> None:
    session = opened()
    session.done("first", 1, "first", **FIGURES)
    while not seen.commits:
        await asyncio.sleep(0.001)
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, allowed[1]))
    try:
        for number in range(500):
            if seen.failures:
                break
            session.done(str(number), "x" * 5000, str(number), **FIGURES)
            await asyncio.sleep(0.001)
        await session.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert len(seen.failures) == 1
    assert 2 < len(seen.tags) < 100
    # The failure comes after the last report, and a run that goes on finds all that was reported.
    session = opened()
    assert set(seen.tags) <= set(rows(path))
    assert rows(path, "PRAGMA integrity_check") == ["ok"]
    await session.close()


async def test_a_disk_that_is_full_at_the_last_checkpoint_costs_nothing(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session], path: Path, seen: Observer
) -> None:
    session = opened()
    session.done("a", os.urandom(20_000).hex(), "a", **FIGURES)
    while not seen.commits:
        await asyncio.sleep(0.001)
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, allowed[1]))
    try:
        await session.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    # What was written of the journal counts pages that are in the log alone.
    with (
        closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as alone,
        pytest.raises(sqlite3.DatabaseError, match="malformed"),
    ):
        alone.execute("PRAGMA application_id")
    with JournalReader(path) as journal:
        assert [item.key for item in journal.items()] == ["a"]
    session = opened()
    assert session.find("a") is not None
    await session.close()
    assert rows(path, "PRAGMA integrity_check") == ["ok"]


async def test_a_failure_of_the_last_commit_is_told_before_close_returns(
    loop: asyncio.AbstractEventLoop,
    opened: Callable[..., Session],
    path: Path,
    seen: Observer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_file, "BUSY_SECONDS", 0.05)
    session = opened()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        session.done("a", 1, "a", **FIGURES)
        await session.close()
    assert len(seen.failures) == 1
    assert seen.tags == rows(path) == []


# Names of functions.


def a_function() -> None: ...


class Caller:
    def method(self) -> None: ...

    def __call__(self) -> None: ...


def test_lambdas_and_partials_are_told_apart() -> None:
    first, same, other = (lambda x: x + 1), (lambda x: x + 1), (lambda x: x + 2)
    assert function_name(first) == function_name(same) != function_name(other)
    one, again, two = (functools.partial(a_function, model=model) for model in ("a", "a", "b"))
    assert function_name(one) == function_name(again) != function_name(two)
    assert function_name(functools.partial(a_function, object())) == function_name(a_function)


def test_functions_have_names_that_stay() -> None:
    here = __name__

    @functools.wraps(a_function)
    def wrapper() -> None: ...

    assert function_name(a_function) == f"{here}.a_function"
    assert function_name(wrapper) == f"{here}.a_function"
    assert function_name(functools.partial(functools.partial(a_function))) == f"{here}.a_function"
    assert function_name(Caller().method) == f"{here}.Caller.method"
    assert function_name(Caller()) == f"{here}.Caller"
    assert function_name(Caller) == f"{here}.Caller"
    assert function_name(len) == "builtins.len"
    assert function_name("x".join) == "str.join"


@pytest.mark.parametrize(
    "arguments", [["script.py"], ["-m", "script"], ["-c", "import script; script.show()"]]
)
def test_a_function_of_a_script_has_the_name_it_has_when_imported(
    arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(
        "from unwait.flow.journal import function_name\n"
        "async def work(item): ...\n"
        "def show(): print(function_name(work))\n"
        "if __name__ == '__main__': show()\n"
    )
    shown = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "script.work\n"


def test_sqlite_is_imported_only_by_who_keeps_a_journal() -> None:
    program = "import sys, unwait.flow.journal as j; j.Journal('x'); print({'sqlite3', 'pickle'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"
