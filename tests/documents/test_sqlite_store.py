"""What only the SQLite store has: a file, which may be another one, and threads, and processes that are killed."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unwait.documents import sqlite_connections, sqlite_files, sqlite_find, sqlite_schema, sqlite_store
from unwait.documents.model import Failure, Filter, Record
from unwait.documents.sqlite_store import SqliteStore
from unwait.documents.store import StoreBusy, StoreError
from unwait.flow.journal_file import open_to_write as open_journal

from .store_support import SPACE, assert_same, assert_whole, make_document, positions, vector

NOWHERE = Filter()
# What a run in a process of its own does: it saves version after version of the same documents, and says so.
WRITER = """
import asyncio, sys
from tests.documents.store_support import make_document
from unwait.documents.model import Record
from unwait.documents.sqlite_store import SqliteStore

async def main(path, name, first, last, begins):
    async with SqliteStore(path) as store:
        run = await store.begin({}) if begins == "1" else 1
        print("open", flush=True)
        for n in range(int(first), int(last)):
            texts = [f"version{n} chunk{i} word" for i in range(2 + n % 5 * 40)]
            records = [Record("R", {"n": n}, i, i) for i in range(n % 4)]
            uri = f"{name}{n % 3}"
            await store.keep_calls({uri: {f"embed:{n}": b"x"}})
            await store.save(make_document(uri, texts, summary=f"version{n}", records=records), run)
            print(n, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "kb.db")


@pytest.fixture
def writer(path: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that write the store; they have opened it. Arguments: a name, the first version, the last."""
    started: list[subprocess.Popen[str]] = []
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    def start(name: str, first: int, last: int, *, begins: bool = False) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, path, name, str(first), str(last), str(int(begins))],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


class TestForeignFiles:
    def foreign(self, path: str, kind: str) -> None:
        if kind == "text":
            Path(path).write_text("these are notes\n" * 100)
        elif kind == "one byte":
            Path(path).write_bytes(b"S")
        elif kind == "a journal of unwait":
            open_journal(path).close()
        elif kind == "a directory":
            os.mkdir(path)
        elif kind == "not a regular file":
            os.mkfifo(path)
        else:
            with closing(sqlite3.connect(path)) as connection:
                connection.executescript("CREATE TABLE documents (a); INSERT INTO documents VALUES (1);")
                if kind in ("newer", "older"):
                    connection.execute(f"PRAGMA application_id = {sqlite_schema.APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {99 if kind == 'newer' else 1}")

    @pytest.mark.parametrize(
        ("kind", "said"),
        [
            ("text", "holds something else"),
            ("one byte", "holds something else"),
            ("another database", "holds something else"),
            ("a journal of unwait", "journal of unwait"),
            ("a directory", "a directory"),
            ("not a regular file", "not a regular file"),
            ("newer", "newer unwait"),
            ("older", "older unwait .* ingest its sources again"),
        ],
    )
    async def test_what_is_no_store_is_refused_and_not_touched(
        self, loop: Any, path: str, tmp_path: Path, kind: str, said: str
    ) -> None:
        self.foreign(path, kind)
        before = Path(path).read_bytes() if os.path.isfile(path) else b""
        with pytest.raises(StoreError, match=said) as raised:
            async with SqliteStore(path):
                pass
        assert path in str(raised.value)
        assert os.listdir(tmp_path) == ["kb.db"]
        assert not os.path.isfile(path) or Path(path).read_bytes() == before

    async def test_an_empty_file_becomes_a_store(self, loop: Any, path: str) -> None:
        Path(path).touch()
        async with SqliteStore(path) as store:
            await store.save(make_document("a"), 1)
        assert_whole(path)

    @pytest.mark.parametrize(
        "size", [0, 4096, None], ids=["before its pages", "after its first page", "before its end"]
    )
    async def test_one_half_made_when_its_process_was_killed_is_made_anew(
        self, loop: Any, path: str, size: int | None
    ) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(sqlite_schema._SCHEMA)
        if size is not None:
            os.truncate(path, size)
        # The log of a transaction that is not committed, and began with an empty file: back to that.
        magic = bytes.fromhex("d9d505f920a163d7")
        Path(f"{path}-journal").write_bytes(
            (magic + struct.pack(">5I", 0, 1, 0, 512, 4096)).ljust(512, b"\0")
        )
        async with SqliteStore(path) as store:
            await store.save(make_document("a"), 1)
            assert_same(await store.document("a"), make_document("a"))
        assert_whole(path)

    async def test_a_path_that_cannot_be_is_named_with_the_cause(self, loop: Any, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path / "no" / "kb.db", tmp_path / "file" / "kb.db"):
            with pytest.raises(StoreError, match=r"cannot open the store .*kb\.db: ") as raised:
                async with SqliteStore(path):
                    pass
            assert raised.value.__cause__ is not None
        for nothing in ("", "a\x00b"):
            with pytest.raises(ValueError, match="path"):
                SqliteStore(nothing)

    async def test_any_path_will_do(self, loop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for path in (":memory:", "a?b#c%41 d.db", "file:x.db", "half \udcff.db"):
            async with SqliteStore(path) as store:
                await store.save(make_document("a"), await store.begin({}))
            assert os.path.isfile(path)
        assert len(os.listdir(tmp_path)) == 4

    @pytest.mark.parametrize("process", [False, True])
    async def test_a_store_that_cannot_be_written_can_be_searched(
        self, loop: Any, process: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_files, "MANY", 1)
        # Root may write everywhere, and others may not look into tmp_path.
        with tempfile.TemporaryDirectory() as directory:
            path = f"{directory}/kb.db"
            async with SqliteStore(path) as store:
                await store.save(make_document("a"), 1)
            os.chmod(path, 0o444)
            os.chmod(directory, 0o555)
            user = os.geteuid()
            if user == 0:
                os.seteuid(65534)
            try:
                async with SqliteStore(path, process=process) as store:
                    assert_same(await store.document("a"), make_document("a"))
                    found, near = await store.find("alpha", vector("alpha"), SPACE, 5, NOWHERE)
                    assert positions(found) == positions(near) == [("a", 0)]
                    with pytest.raises(StoreError, match="cannot write the store"):
                        await store.begin({})
                    with pytest.raises(StoreError, match="cannot write the store"):
                        await store.save(make_document("b"), 1)
                assert os.listdir(directory) == ["kb.db"]
            finally:
                os.seteuid(user)
                os.chmod(directory, 0o755)


class TestEnds:
    async def test_a_closed_store_is_one_file_and_has_no_thread(
        self, loop: Any, path: str, tmp_path: Path
    ) -> None:
        async with SqliteStore(path) as store:
            await store.save(make_document("a"), await store.begin({}))
            await asyncio.gather(*(store.document("a") for _ in range(20)))
            assert any(thread.name.startswith("unwait-store") for thread in threading.enumerate())
        assert not any(thread.name.startswith("unwait-store") for thread in threading.enumerate())
        assert os.listdir(tmp_path) == ["kb.db"]
        for use in (store.state("a"), store.save(make_document("a"), 1), store.touch("a", "here", 1)):
            with pytest.raises(StoreError, match="is closed"):
                await use

    async def test_it_may_be_closed_while_operations_run(self, loop: Any, path: str) -> None:
        documents = [make_document(f"u{n}", [f"text {n} {i}" for i in range(50)]) for n in range(20)]
        async with SqliteStore(path) as store:
            tasks = [asyncio.create_task(store.save(document, 1)) for document in documents]
            tasks += [asyncio.create_task(store.document("u0")) for _ in range(20)]
            tasks += [
                asyncio.create_task(store.find("text", vector("text"), SPACE, 5, NOWHERE)) for _ in range(20)
            ]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        async with SqliteStore(path) as store:
            for document in documents:
                assert_same(await store.document(document.uri), document)

    async def test_one_who_is_cancelled_leaves_all_or_nothing(self, loop: Any, path: str) -> None:
        async with SqliteStore(path) as store:
            for n in range(10):
                document = make_document(f"u{n}", ["text"] * 100)
                task = asyncio.create_task(store.save(document, 1))
                for _ in range(n):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await store.save(make_document("last"), 1)
        assert_whole(path)

    async def test_a_close_that_is_cancelled_closes(self, loop: Any, path: str, tmp_path: Path) -> None:
        going_on, saving = threading.Event(), threading.Event()

        def wait(_: sqlite3.Connection) -> None:
            saving.set()
            going_on.wait()

        async def use() -> None:
            async with SqliteStore(path) as store:
                await store.begin({})
                waiting.append(asyncio.ensure_future(store._files.write(wait)))
                await asyncio.to_thread(saving.wait)

        waiting: list[asyncio.Future[None]] = []
        task = asyncio.create_task(use())
        while not saving.is_set():
            await asyncio.sleep(0.001)
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        going_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await waiting[0]
        assert os.listdir(tmp_path) == ["kb.db"]

    async def test_the_log_stays_small_whoever_reads(
        self, loop: Any, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SQLite itself begins the log anew only in a moment when nobody reads."""
        monkeypatch.setattr(sqlite_connections, "MOST_LOG", 300_000)
        monkeypatch.setattr(sqlite_connections, "LOG_WAIT_MS", 1)
        document = make_document("a", ["word " * 200] * 50)
        async with SqliteStore(path) as store:
            for _ in range(20):
                await store.save(document, 1)
            assert os.path.getsize(f"{path}-wal") < 1_000_000
            # One that reads all the time keeps nobody from writing, and the log is begun anew after it.
            with closing(sqlite3.connect(path)) as reader:
                reader.execute("BEGIN").execute("SELECT * FROM state").fetchone()
                for _ in range(20):
                    await store.save(document, 1)
            assert os.path.getsize(f"{path}-wal") > 1_000_000
            for _ in range(5):
                await store.save(document, 1)
            assert os.path.getsize(f"{path}-wal") < 1_000_000
            assert_same(await store.document("a"), document)
        assert_whole(path)

    async def test_an_error_takes_no_cursor_to_another_thread(self, loop: Any, path: str) -> None:
        """Where a cursor is freed, it touches its connection, which another thread may be using then."""
        freed: list[str] = []

        class Cursor(sqlite3.Cursor):
            def __del__(self) -> None:
                freed.append(threading.current_thread().name)

        def breaks(connection: sqlite3.Connection) -> None:
            cursor = connection.cursor(Cursor)
            cursor.execute("SELECT 1 UNION SELECT 2").fetchone()
            connection.execute("SELECT * FROM absent")

        files = sqlite_files.Files(path)
        await files.open()
        for ask, thread in ((files.read, "reader"), (files.write, "writer"), (files.write_many, "writer")):
            with pytest.raises(StoreError, match="no such table"):
                await ask(breaks)
            assert thread in freed.pop()
        await files.close()

    async def test_a_full_disk_is_said_and_costs_no_other_document(
        self, loop: Any, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def small(path: str) -> sqlite3.Connection:
            connection = sqlite_schema.open_to_write(path)
            connection.execute("PRAGMA max_page_count = 60")
            return connection

        monkeypatch.setattr(sqlite_connections, "open_to_write", small)
        async with SqliteStore(path) as store:
            run = await store.begin({})
            await store.save(make_document("a"), run)
            second = await store.begin({})
            await store.touch("a", "there", second)
            with pytest.raises(StoreError, match=r"cannot write the store .*kb\.db: .*full"):
                await store.save(make_document("b", ["word " * 200] * 400), run)
            # What was to be committed along with it is not lost.
            state = await store.state("a")
            assert state is not None
            assert state.run == second
            await store.save(make_document("c"), run)
            assert await store.prune(second, ["here"]) == ["c"]
        async with SqliteStore(path) as store:
            assert [row.uri async for row in store.documents()] == ["a"]
        assert_whole(path)

    async def test_a_disk_that_is_full_at_the_last_checkpoint_costs_nothing(
        self, loop: Any, path: str
    ) -> None:
        document = make_document("a", ["word " * 200] * 50)
        allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            async with SqliteStore(path) as store:
                await store.save(document, 1)
                resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path), allowed[1]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
        # What was written of the store counts pages that are in the log alone.
        with (
            closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as alone,
            pytest.raises(sqlite3.DatabaseError, match="malformed"),
        ):
            alone.execute("PRAGMA application_id")
        async with SqliteStore(path) as store:
            assert_same(await store.document("a"), document)
        assert_whole(path)


class TestTouches:
    async def test_they_wait_for_the_next_transaction_and_are_seen_before(self, loop: Any, path: str) -> None:
        async with SqliteStore(path) as store, SqliteStore(path) as other:
            run = await store.begin({})
            for n in range(3):
                await store.save(make_document(f"u{n}"), run)
                await store.fail(Failure(f"u{n}", "here", "load", "broken", "it is"), run)
            second = await store.begin({})
            await store.touch("u0", "there", second)

            async def seen() -> tuple[int, int]:
                states = [await each.state("u0") for each in (store, other)]
                return tuple(state.run for state in states if state is not None)  # type: ignore[return-value]

            assert await seen() == (second, run)
            await store.save(make_document("u1"), second)
            assert await seen() == (second, second)
            await store.touch("u2", "there", second)
            assert [failure.uri async for failure in store.failures()] == []
            await store.touch("u2", "elsewhere", second)
            document = await store.document("u2")
            assert document is not None
            assert document.origin == "elsewhere"
            await store.touch("u2", "last", second)
        async with SqliteStore(path) as store:
            document = await store.document("u2")
            assert document is not None
            assert document.origin == "last"

    async def test_not_too_many_of_them_wait(self, loop: Any, path: str) -> None:
        async with SqliteStore(path) as store, SqliteStore(path) as other:
            await store.save(make_document("u0"), 1)
            for n in range(sqlite_files.MOST_TOUCHES):
                await store.touch(f"u{n}", "there", 7)
            state = await other.state("u0")
            assert state is not None
            assert state.run == 7
            assert not store._files._touches
            assert not store._files._touched


class TestProcesses:
    async def test_who_writes_is_named_and_its_death_ends_its_right(
        self, loop: Any, path: str, tmp_path: Path, writer: Callable[..., subprocess.Popen[str]]
    ) -> None:
        process = writer("a", 0, 10_000_000, begins=True)
        link = tmp_path / "link.db"
        link.symlink_to(path)
        async with SqliteStore(link) as store:
            with pytest.raises(StoreBusy, match=f"pid {process.pid}"):
                await store.begin({})
            process.kill()
            process.wait()
            assert await store.begin({}) == 2

    async def test_several_processes_write_at_once(
        self, loop: Any, path: str, writer: Callable[..., subprocess.Popen[str]]
    ) -> None:
        processes = [writer(name, 0, 30) for name in "abc"]
        seen: set[str] = set()
        async with SqliteStore(path) as store:
            while any(process.poll() is None for process in processes):
                _, near = await store.find("", vector("word"), SPACE, 1000, NOWHERE)
                seen.update(uri for uri, _ in positions(near))
                await store.save(make_document("mine", [f"word {len(seen)}"]), 1)
            assert [process.wait() for process in processes] == [0, 0, 0]
            for name in "abc":
                for n in (27, 28, 29):
                    document = await store.document(f"{name}{n % 3}")
                    assert document is not None
                    assert document.summary == f"version{n}"
            assert await store.kept_calls([f"embed:{n}" for n in range(30)]) == {}
            _, near = await store.find("", vector("word"), SPACE, 10_000, NOWHERE)
            assert len(near) == 1 + 3 * sum(2 + n % 5 * 40 for n in (27, 28, 29))
        assert_whole(path)

    async def test_a_kill_at_any_moment_loses_nothing_that_was_said_to_be_saved(
        self, loop: Any, path: str, writer: Callable[..., subprocess.Popen[str]]
    ) -> None:
        moments, first = random.Random(4), 0
        async with SqliteStore(path) as store:
            for _ in range(10):
                process = writer("a", first, 10_000_000, begins=True)
                assert process.stdout is not None
                for _ in range(moments.randrange(1, 8)):
                    saved = int(process.stdout.readline())
                await asyncio.sleep(moments.random() * 0.01)
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                # What it said before it died.
                saved = max([saved, *(int(line) for line in process.stdout if line.endswith("\n"))])
                versions = []
                for n in range(3):
                    document = await store.document(f"a{n}")
                    if document is not None:
                        number = int(document.summary[7:])
                        versions.append(number)
                        assert number % 3 == n
                        texts = [f"version{number} chunk{i} word" for i in range(2 + number % 5 * 40)]
                        records = [Record("R", {"n": number}, i, i) for i in range(number % 4)]
                        expected = make_document(f"a{n}", texts, summary=document.summary, records=records)
                        assert_same(document, expected)
                assert saved <= max(versions) <= saved + 1
                first = max(versions) + 1
                assert_whole(path)
        assert set(os.listdir(os.path.dirname(path))) == {"kb.db", "kb.db-lock"}


class TestRanking:
    async def test_what_was_removed_does_not_stay_in_memory(self, loop: Any, path: str) -> None:
        async with SqliteStore(path) as store, SqliteStore(path) as other:
            for n in range(100):
                await other.save(make_document(f"u{n}", ["word"] * 10), 1)
            _, near = await store.find("", vector("word"), SPACE, 2000, NOWHERE)
            assert len(near) == 1000
            await other.touch("u7", "here", 2)
            assert len(await other.prune(2, ["here"])) == 99
            _, near = await store.find("", vector("word"), SPACE, 2000, NOWHERE)
            assert [candidate.uri for candidate in near] == ["u7"] * 10
            (matrix,) = store._matrices.values()
            assert len(matrix._vectors) < 50
            for n in range(50):
                await other.save(make_document("u7", [f"word {n}"] * 10), 1)
                _, near = await store.find("", vector("word"), SPACE, 2000, NOWHERE)
                assert {candidate.text for candidate in near} == {f"word {n}"}
                assert len(near) == 10
            assert len(matrix._vectors) < 50

    async def test_one_thread_at_a_time_brings_the_matrix_up_to_date(
        self, loop: Any, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows_of, alone, together = sqlite_find.Matrix.rows_of, threading.Lock(), []

        def watched(*arguments: Any) -> Any:
            if not alone.acquire(blocking=False):
                together.append(arguments)
                return rows_of(*arguments)
            try:
                others.wait(0.02)
                return rows_of(*arguments)
            finally:
                alone.release()

        others = threading.Event()  # never set: time for the others to come
        monkeypatch.setattr(sqlite_find.Matrix, "rows_of", watched)
        async with SqliteStore(path) as store:
            await store.save(make_document("a"), 1)
            found = await asyncio.gather(
                *(store.find("", vector("alpha"), SPACE, 5, NOWHERE) for _ in range(4))
            )
        assert [positions(near) for _, near in found] == [[("a", 0)]] * 4
        assert not together

    async def test_common_words_are_left_out_where_there_is_much_to_rank(
        self, loop: Any, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with SqliteStore(path) as store:
            for n in range(10):
                texts = [f"common {'half' if i % 2 else 'other'} w{n}x{i}" for i in range(10)]
                await store.save(make_document(f"u{n}", texts), 1)
            whole, _ = await store.find("common half w3x3", None, SPACE, 1000, NOWHERE)
            assert len(whole) == 100
            monkeypatch.setattr("unwait.documents.words._MOST_MATCHES", 30)
            texts, _ = await store.find("common half w3x3 w4x4", None, SPACE, 1000, NOWHERE)
            assert sorted(candidate.uri for candidate in texts) == ["u3", "u4"]
            # One word is ranked, however common it is; of one that says nothing, as many chunks as may be.
            texts, _ = await store.find("half", None, SPACE, 1000, NOWHERE)
            assert len(texts) == 50
            texts, _ = await store.find("common nowhere", None, SPACE, 1000, NOWHERE)
            assert len(texts) == 30
            texts, _ = await store.find("common", None, SPACE, 1000, Filter("u9"))
            assert len(texts) == 10

    async def test_nothing_is_near_to_no_words(self, loop: Any, path: str) -> None:
        async with SqliteStore(path) as store:
            await store.save(make_document("a"), 1)
            assert await store.find("", vector(""), SPACE, 10, NOWHERE) == ([], [])
            assert await store.find("alpha", vector("alpha"), SPACE, 0, NOWHERE) == ([], [])


class TestLookups:
    async def test_one_of_a_digest_takes_as_long_however_much_is_stored(self, loop: Any, path: str) -> None:
        """Of a passage that is new: that is what a run looks for, once for each that it has read."""
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        async with SqliteStore(path) as store:
            taken = []
            for n in range(200):
                space = "other-8" if n % 10 else SPACE
                await store.save(make_document(f"u{n}", [f"text {n}", "everywhere"], space=space), 1)
                if n not in (1, 10, 199):
                    continue
                with closing(sqlite_schema.open_to_write(path)) as connection:
                    connection.set_progress_handler(count, 1)
                    steps = 0
                    unknown = [f"{number:032x}" for number in range(50)]
                    assert sqlite_store._vectors(connection, SPACE, unknown) == {}
                    taken.append(steps)
                    steps = 0
                    everywhere = make_document("u0", ["everywhere"]).chunks[0].digest
                    assert list(sqlite_store._vectors(connection, SPACE, [everywhere])) == [everywhere]
                    taken.append(steps)
            assert len(set(taken[::2])) == len(set(taken[1::2])) == 1


ANY_TEXT = st.text(st.characters(codec=None), max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(ANY_TEXT, max_size=5),
    title=ANY_TEXT,
    section=st.lists(ANY_TEXT, max_size=3),
    metadata=st.dictionaries(
        ANY_TEXT, ANY_TEXT | st.integers() | st.booleans() | st.none() | st.lists(ANY_TEXT)
    ),
    summary=ANY_TEXT,
    words=ANY_TEXT,
)
def test_any_text_goes_in_and_comes_out_and_leaves(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    title: str,
    section: list[str],
    metadata: dict[str, Any],
    summary: str,
    words: str,
) -> None:
    path = str(tmp_path_factory.mktemp("any") / "kb.db")
    document = make_document(
        "a",
        texts,
        title=title,
        sections=[tuple(section)] * len(texts),
        metadata=metadata,
        summary=summary,
        records=[Record(text, {"text": text}, 0, 1) for text in texts],
    )

    async def main() -> None:
        async with SqliteStore(path) as store:
            await store.save(document, 1)
            assert_same(await store.document("a"), document)
            await store.find(words, None, SPACE, 5, NOWHERE)
            for key, value in metadata.items():
                if isinstance(value, str):
                    found = [row async for row in store.documents(Filter(metadata={key: value}))]
                    assert len(found) == 1
            await store.save(document, 1)
            await store.prune(2, ["here"])

    asyncio.run(main())
    assert_whole(path)
    with closing(sqlite3.connect(path)) as connection:
        for table in ("documents", "chunks", "vectors", "records", "full_text"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


@given(st.text(max_size=4), st.text(max_size=4))
def test_the_range_of_a_prefix_holds_what_begins_so(prefix: str, rest: str) -> None:
    low, high = sqlite_schema.range_of(prefix)
    for text in (rest, prefix + rest):
        assert (low <= text and (high is None or text < high)) == text.startswith(prefix)


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_a_pattern_matches_as_a_naive_one(pattern: str, text: str) -> None:
    def naive(pattern: str, text: str) -> bool:
        if not pattern:
            return not text
        if pattern[0] == "*":
            return any(naive(pattern[1:], text[n:]) for n in range(len(text) + 1))
        return text[:1] == pattern[0] and naive(pattern[1:], text[1:])

    pattern += "*"
    assert sqlite_schema._matches(text, pattern) == naive(pattern, text)
