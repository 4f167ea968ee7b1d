"""A SQLite store that a process writes: whoever dies, it stays whole, and is free at once for the next run."""

from __future__ import annotations

import asyncio
import importlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from unwait.documents import sqlite_files, sqlite_process
from unwait.documents.model import Failure
from unwait.documents.sqlite_process import StoreProcess
from unwait.documents.sqlite_store import SqliteStore
from unwait.documents.store import StoreBusy, StoreError, open_store
from unwait.flow.journal_file import WriterLock

from ..processes import Gate, await_end, children, gone
from ..steps import at_step
from .store_support import assert_same, assert_whole, in_process, make_document, process_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# A run that has stored "a", and then is in the middle of a transaction that removes it.
RUN = """
import asyncio, sys
import store_functions
from tests.documents.store_support import in_process, make_document, process_of
from unwait.documents import sqlite_files

async def main(path, gate):
    sqlite_files.MANY = 1
    async with in_process(path) as store:
        run = await store.begin({})
        await store.save(make_document("a"), run)
        print(await process_of(store), flush=True)
        await store._files.write(store_functions.change_and_wait, gate)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    threads, processes = set(threading.enumerate()), children()
    yield
    assert {thread for thread in threading.enumerate() if thread.name.startswith("unwait")} <= threads
    assert children() <= processes


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process after the first read or write of a run."""
    monkeypatch.setattr(sqlite_files, "MANY", 1)


@pytest.fixture(scope="module")
def functions() -> Iterator[Any]:
    """The module of the functions, under a name by which the process can import it."""
    sys.path.insert(0, str(HERE))
    yield importlib.import_module("store_functions")
    sys.path.remove(str(HERE))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "kb.db")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


@pytest.fixture
def other_run(path: str, gate: Gate) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A run in the middle of a transaction, and the id of its store process."""
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, path, gate.path],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    with run:
        store_process = int(run.stdout.readline())
        while not os.path.exists(f"{gate.path}.begun"):
            assert run.poll() is None
        yield run, store_process
        run.kill()
    await_end(store_process)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def waiting(store: SqliteStore) -> int:
    """How many calls the store's process has not answered."""
    assert store._files._process is not None
    return store._files._process._process.waiting


def pid_of(store: SqliteStore) -> int:
    assert store._files._process is not None
    return store._files._process._process._process.pid


def later(*calls: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(call) for call in calls]


async def run_of(path: str, uri: str) -> int:
    """The last run in which the document was seen, as others see it."""
    async with SqliteStore(path) as other:
        state = await other.state(uri)
        assert state is not None
        return state.run


class TestWork:
    async def test_a_long_run_has_one_and_goes_on_in_threads_until_it_is_there(
        self, loop: Any, functions: Any, path: str, tmp_path: Path
    ) -> None:
        async with open_store(path, process=True) as store:
            assert isinstance(store, SqliteStore)
            await store.save(make_document("before a run"), 1)
            await store.settings()
            assert store._files._starting is None  # who only looks needs none
            run = await store.begin({})
            assert store._files._process is None
            documents = [make_document(f"u{n}", [f"text {n}"] * 20) for n in range(300)]
            started = later(*(store.save(document, run) for document in documents[:150]))
            process = await process_of(store)
            assert process in children()
            started += later(*(store.save(document, run) for document in documents[150:]))
            await asyncio.gather(*started)
            assert await store._files.read(functions.pid) == process
            assert await store._files.write(functions.pid) == process
            for document in documents:
                assert_same(await store.document(document.uri), document)
        assert gone(process)
        assert os.listdir(tmp_path) == ["kb.db"]
        assert_whole(path)

    async def test_none_comes_where_none_was_wanted(self, loop: Any, path: str) -> None:
        async with open_store(path) as store:
            assert isinstance(store, SqliteStore)
            for _ in range(3):
                await store.begin({})
            assert store._files._starting is None

    async def test_large_documents_are_stored_as_they_are(self, loop: Any, path: str) -> None:
        large = [make_document(f"large {n}", [f"text {n} {i}" for i in range(300 + n)]) for n in range(4)]
        small = [make_document(f"small {n}") for n in range(4)]
        async with in_process(path) as store:
            both = [document for pair in zip(large, small, strict=True) for document in pair]
            await asyncio.gather(*(store.save(document, 1) for document in both))
            for document in both:
                assert_same(await store.document(document.uri), document)
        assert_whole(path)

    async def test_it_may_be_closed_while_operations_run(self, loop: Any, path: str) -> None:
        documents = [make_document(f"u{n}", [f"text {i}" for i in range(50 + n * 50)]) for n in range(8)]
        async with in_process(path) as store:
            tasks = later(*(store.save(document, 1) for document in documents))
            tasks += later(*(store.document("u0") for _ in range(20)))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        async with SqliteStore(path) as store:
            for document in documents:
                assert_same(await store.document(document.uri), document)

    async def test_what_fails_changes_nothing_and_says_why(
        self, loop: Any, functions: Any, path: str
    ) -> None:
        async with in_process(path) as store:
            await store.save(make_document("a"), 1)
            with pytest.raises(LookupError, match="this is it"):
                await store._files.write(functions.fail, "this is it")
            with pytest.raises(StoreError, match=r"cannot read the store .*kb\.db: no such table"):
                await store._rows("SELECT * FROM absent")
            assert_same(await store.document("a"), make_document("a"))


class TestTouches:
    async def test_they_go_with_the_next_transaction(self, loop: Any, path: str) -> None:
        async with in_process(path) as store:
            run = await store.begin({})
            for n in range(3):
                await store.save(make_document(f"u{n}"), run)
                await store.fail(Failure(f"u{n}", "here", "load", "broken", "it is"), run)
            second = await store.begin({})
            for n in range(2):
                await store.touch(f"u{n}", "there", second)
                state = await store.state(f"u{n}")
                assert state is not None
                assert (state.run, await run_of(path, f"u{n}")) == (second, run)
            assert [failure.uri async for failure in store.failures()] == ["u2"]
            assert await run_of(path, "u0") == await run_of(path, "u1") == second
            assert not store._files._touched
            await store.touch("u2", "there", second)
            document = await store.document("u2")
            assert document is not None
            assert document.origin == "there"
            await store.touch("u2", "last", second)
        async with SqliteStore(path) as other:
            document = await other.document("u2")
            assert document is not None
            assert document.origin == "last"

    async def test_not_too_many_of_them_wait(self, loop: Any, path: str) -> None:
        async with in_process(path) as store:
            await store.save(make_document("u0"), 1)
            for n in range(sqlite_files.MOST_TOUCHES):
                await store.touch(f"u{n}", "there", 7)
            assert await run_of(path, "u0") == 7
            assert not store._files._touches
            assert not store._files._touched

    async def test_those_of_a_write_that_fails_go_with_the_next(
        self, loop: Any, functions: Any, path: str
    ) -> None:
        async with in_process(path) as store:
            run = await store.begin({})
            await store.save(make_document("a"), run)
            second = await store.begin({})
            await store.touch("a", "there", second)
            with pytest.raises(LookupError):
                await store._files.write(functions.fail, "no")
            state = await store.state("a")
            assert state is not None
            assert (state.run, await run_of(path, "a")) == (second, run)
            await store.touch("a", "elsewhere", second)
            await store.save(make_document("b"), second)
            assert await run_of(path, "a") == second
            document = await store.document("a")
            assert document is not None
            assert document.origin == "elsewhere"

    @pytest.mark.parametrize("chunks", [1, 300])
    async def test_whoever_is_cancelled_takes_none_along(
        self, loop: Any, functions: Any, path: str, gate: Gate, chunks: int
    ) -> None:
        async with in_process(path) as store:
            run = await store.begin({})
            await store.save(make_document("a"), run)
            second = await store.begin({})
            held = later(store._files.read(functions.wait, gate.path))
            await gate.reached()
            await store.touch("a", "there", second)
            document = make_document("b", ["text"] * chunks)
            (saving,) = later(store.save(document, second))
            await asyncio.sleep(0)
            saving.cancel()
            await asyncio.wait([saving])
            assert saving.cancelled()
            assert await run_of(path, "a") == run
            gate.open()
            await asyncio.gather(*held)
            await until(lambda: not store._files._doing)
            assert await run_of(path, "a") == second
            assert_same(await store.document("b"), document)


class TestDisk:
    async def test_one_that_is_full_is_said_and_costs_no_other_document(
        self, loop: Any, functions: Any, path: str
    ) -> None:
        async with in_process(path) as store:
            run = await store.begin({})
            await store._files.write(functions.bound, 60)
            await store.save(make_document("a"), run)
            second = await store.begin({})
            await store.touch("a", "there", second)
            with pytest.raises(StoreError, match=r"cannot write the store .*kb\.db: .*full"):
                await store.save(make_document("b", ["word " * 200] * 400), run)
            state = await store.state("a")
            assert state is not None
            assert state.run == second
            await store.save(make_document("c"), run)
            assert await store.prune(second, ["here"]) == ["c"]
        async with SqliteStore(path) as store:
            assert [row.uri async for row in store.documents()] == ["a"]
        assert_whole(path)

    async def test_one_that_takes_no_more_is_said_and_what_is_stored_stays(
        self, loop: Any, path: str
    ) -> None:
        async with in_process(path) as store:
            await store.save(make_document("a"), 1)
            pid = await process_of(store)
            allowed = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (os.path.getsize(f"{path}-wal"), allowed[1]))
            with pytest.raises(StoreError, match=r"cannot write the store .*kb\.db: "):
                await store.save(make_document("b", ["word " * 200] * 50), 1)
            with pytest.raises(StoreError, match=r"cannot write the store .*kb\.db: "):
                await store.prune(2, ["here"])
            assert_same(await store.document("a"), make_document("a"))
            resource.prlimit(pid, resource.RLIMIT_FSIZE, allowed)
            await store.save(make_document("b"), 1)
        async with SqliteStore(path) as store:
            assert [row.uri async for row in store.documents()] == ["a", "b"]
        assert_whole(path)


class TestDeath:
    async def test_when_it_dies_the_threads_do_what_it_was_asked(
        self, loop: Any, functions: Any, path: str, gate: Gate, tmp_path: Path
    ) -> None:
        large = make_document("c", ["text"] * 300)
        async with in_process(path) as store:
            run = await store.begin({})
            await store.save(make_document("a"), run)
            second = await store.begin({})
            calls = later(store._files.write(functions.change_and_wait, gate.path, os.getpid()))
            await gate.reached()
            await store.touch("a", "there", second)
            calls += later(
                store.save(make_document("b"), second),  # with the touch
                store.save(large, second),
                store.prune(second, ["nowhere"]),
                store.keep_calls({"a": {"k": b"v"}}),
                store.document("a"),
            )
            await until(lambda: waiting(store) == len(calls))
            calls[1].cancel()
            os.kill(pid_of(store), signal.SIGKILL)
            done = await asyncio.gather(calls[0], *calls[2:])
            assert done[:4] == [0, None, [], None]
            assert_same(done[4], make_document("a", origin=done[4].origin))
            await until(lambda: not store._files._doing)
            assert await run_of(path, "a") == second
            assert_same(await store.document("b"), make_document("b"))
            assert_same(await store.document("c"), large)
            assert await store.kept_calls(["k"]) == {"k": b"v"}
            await store.save(make_document("d"), second)
            await store.touch("d", "last", second)
        assert sorted(os.listdir(tmp_path)) == ["gate", "gate.begun", "kb.db"]
        assert_whole(path)
        async with in_process(path) as store:
            assert await store.begin({}) == second + 1
            assert [(row.uri, row.origin) async for row in store.documents()] == [
                ("a", "there"),
                ("b", "here"),
                ("c", "here"),
                ("d", "last"),
            ]
            await store.save(make_document("e"), second + 1)

    async def test_when_it_dies_as_the_store_is_closed_the_touches_are_kept(
        self, loop: Any, functions: Any, path: str, gate: Gate
    ) -> None:
        async def kill(store: SqliteStore, process: int) -> None:
            await until(lambda: store._files._closing and waiting(store) == 3)
            os.kill(process, signal.SIGKILL)

        async def use() -> list[asyncio.Task[Any]]:
            async with in_process(path) as store:
                run = await store.begin({})
                await store.save(make_document("a"), run)
                second = await store.begin({})
                held = later(store._files.write(functions.change_and_wait, gate.path, os.getpid()))
                await gate.reached()
                await store.touch("a", "there", second)
                held += later(store.save(make_document("b"), second))
                await until(lambda: waiting(store) == 2)
                held += later(kill(store, pid_of(store)))
            return held

        *calls, killing = await use()
        await killing
        for call in calls:
            with pytest.raises(StoreError, match="is closed"):
                await call
        assert await run_of(path, "a") == 2
        assert_whole(path)

    async def test_one_that_cannot_be_started_is_done_without(
        self, loop: Any, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number, program in enumerate(("/bin/false", "/nonexistent")):
            monkeypatch.setattr(sys, "executable", program)
            async with SqliteStore(path, process=True) as store:
                run = await store.begin({})
                assert store._files._starting is not None
                await store._files._starting
                assert store._files._process is None
                await store.save(make_document(f"u{number}"), run)
            assert_whole(path)

    async def test_one_that_ends_as_it_opens_the_store_is_done_without(
        self, loop: Any, functions: Any, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_process, "_open", functions.end)
        async with SqliteStore(path, process=True) as store:
            run = await store.begin({})
            assert store._files._starting is not None
            await store._files._starting
            assert store._files._process is None
            await store.save(make_document("a"), run)
        assert_whole(path)

    async def test_it_may_be_closed_while_the_process_is_started(
        self, loop: Any, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start, step = StoreProcess.start, 0
        reached = asyncio.Event()
        monkeypatch.setattr(
            StoreProcess,
            "start",
            lambda *arguments: at_step(start(*arguments), step, lambda _: reached.set()),
        )
        while True:
            async with SqliteStore(path, process=True) as store:
                run = await store.begin({})
                await store.touch("u0", "here", run)
                await store.save(make_document(f"u{step}"), run)
                await store.touch("u0", "there", run)
                assert store._files._starting is not None
                reaching = asyncio.ensure_future(reached.wait())
                await asyncio.wait([reaching, store._files._starting], return_when=asyncio.FIRST_COMPLETED)
            assert os.listdir(tmp_path) == ["kb.db"]
            assert await run_of(path, "u0") == run
            if not reached.is_set():
                break
            reached.clear()
            step += 1
        reaching.cancel()
        assert step > 3
        assert_whole(path)


class TestRuns:
    async def test_a_run_that_is_killed_within_a_transaction_leaves_the_store_whole_and_free(
        self, loop: Any, path: str, other_run: tuple[subprocess.Popen[str], int]
    ) -> None:
        run, process = other_run
        run.kill()
        run.wait()
        started = time.monotonic()
        async with in_process(path) as store:
            assert await store.begin({}) == 2
            assert time.monotonic() - started < sqlite_files.LOCK_WAIT
            assert gone(process)
            assert_same(await store.document("a"), make_document("a"))
            await store.save(make_document("b"), 2)
        assert_whole(path)

    async def test_while_a_run_lives_another_one_is_refused_and_told_whose_it_is(
        self, loop: Any, path: str, other_run: tuple[subprocess.Popen[str], int]
    ) -> None:
        run, process = other_run
        async with SqliteStore(path, process=True) as store:
            with pytest.raises(StoreBusy, match=rf"pid {run.pid}\)"):
                await store.begin({})
            assert_same(await store.document("a"), make_document("a"))
            assert not gone(process)

    async def test_a_run_that_is_killed_while_its_process_starts_leaves_the_store_free(
        self, loop: Any, path: str, tmp_path: Path
    ) -> None:
        """At moments of all kinds: the process has the lock from its very beginning."""
        text = (
            "import asyncio, sys\nfrom unwait.documents import sqlite_files\n"
            "from unwait.documents.sqlite_store import SqliteStore\n"
            "async def main():\n    sqlite_files.MANY = 1\n"
            "    async with SqliteStore(sys.argv[1], process=True) as store:\n"
            "        print(await store.begin({}), flush=True)\n        await asyncio.sleep(1000)\n"
            "asyncio.run(main())\n"
        )
        for number in range(6):
            with subprocess.Popen(
                [sys.executable, "-c", text, path], stdout=subprocess.PIPE, text=True
            ) as run:
                assert run.stdout is not None
                assert int(run.stdout.readline()) == 2 * number + 1
                await asyncio.sleep(0.03 * number)
                run.kill()
            async with SqliteStore(path) as store:
                assert await store.begin({}) == 2 * number + 2
        assert_whole(path)


class TestLock:
    async def test_that_of_a_run_that_is_dead_is_waited_for(
        self, loop: Any, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with subprocess.Popen(["/bin/true"]) as dead:
            pass
        lock = WriterLock(path)
        os.pwrite(lock.fileno(), f"{dead.pid}".ljust(10).encode(), 0)
        async with SqliteStore(path, process=True) as store:
            (begun,) = later(store.begin({}))
            await asyncio.wait([begun], timeout=0.1)
            assert not begun.done()
            lock.release()
            assert await begun == 1

    async def test_but_not_for_ever(self, loop: Any, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite_files, "LOCK_WAIT", 0.05)
        lock = WriterLock(path)
        async with SqliteStore(path) as store:
            for text in (f"{2**22 + 1}", f"{2**80}"):
                os.pwrite(lock.fileno(), text[:20].ljust(20).encode(), 0)
                with pytest.raises(StoreBusy, match="is being written by another run"):
                    await store.begin({})
        lock.release()

    @pytest.mark.parametrize("text", [f"{os.getpid()}", "1", "", "words"])
    async def test_that_of_one_that_may_live_is_not_waited_for(
        self, loop: Any, path: str, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        monkeypatch.setattr(sqlite_files.time, "sleep", lambda _: pytest.fail("it waits"))
        lock = WriterLock(path)
        os.ftruncate(lock.fileno(), 0)
        os.pwrite(lock.fileno(), text.encode(), 0)
        async with SqliteStore(path) as store:
            with pytest.raises(StoreBusy, match="is being written by another run"):
                await store.begin({})
        lock.release()
