"""A process that runs functions for the loop: their order, what goes together, errors, and that nothing stays."""

from __future__ import annotations

import asyncio
import errno
import importlib
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import unwait
from unwait.flow import coprocess
from unwait.flow.coprocess import Coprocess, CoprocessEnded

from ..processes import Gate, await_end, children, error_of, gone, pid_in, until
from ..steps import at_step

HERE = Path(__file__).parent
SOURCE = Path(unwait.__file__).parent.parent


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    threads, processes = set(threading.enumerate()), children()
    yield
    assert set(threading.enumerate()) <= threads
    assert children() <= processes


@pytest.fixture(scope="module")
def functions() -> Iterator[Any]:
    """The module of the functions, under a name by which the process can import it."""
    sys.path.insert(0, str(HERE))
    yield importlib.import_module("coprocess_functions")
    sys.path.remove(str(HERE))


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The messages that are sent: of each the lengths of its calls."""
    sent: list[list[int]] = []
    framed = coprocess._framed

    def noted(messages: Sequence[bytes]) -> list[bytes]:
        sent.append([len(message) for message in messages])
        return framed(messages)

    monkeypatch.setattr(coprocess, "_framed", noted)
    return sent


@asynccontextmanager
async def started(**options: Any) -> AsyncIterator[Coprocess]:
    process = await Coprocess.start(**options)
    try:
        yield process
    finally:
        await process.kill()


def later(*calls: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(call) for call in calls]


# Calls.


async def test_calls_are_run_in_the_order_in_which_they_are_asked(
    loop: Any, functions: Any, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    names = [str(number) for number in range(200)]
    async with started() as process:
        assert (
            await asyncio.gather(*(process.call(functions.note, str(notes), name) for name in names)) == names
        )
        assert await process.call(os.getpid) == process._process.pid != os.getpid()
    assert notes.read_text().split() == names


async def test_what_is_asked_while_it_is_busy_goes_there_together(
    loop: Any, functions: Any, gate: Gate, frames: list[list[int]]
) -> None:
    async with started() as process:
        del frames[:]
        held = later(process.call(functions.wait, gate.path))
        await gate.reached()
        calls = later(*(process.call(functions.echo, number) for number in range(100)))
        await until(lambda: process.waiting == 101)
        await asyncio.sleep(0)
        # One message is worked on, and the next is there already.
        assert [len(frame) for frame in frames] == [1, 32]
        gate.open()
        assert await asyncio.gather(*held, *calls) == [1, *range(100)]
        assert [len(frame) for frame in frames] == [1, 32, 32, 32, 4]
        assert process.waiting == 0


async def test_a_message_is_not_much_larger_than_a_megabyte(
    loop: Any, functions: Any, gate: Gate, frames: list[list[int]]
) -> None:
    async with started() as process:
        del frames[:]
        held = later(process.call(functions.wait, gate.path))
        await gate.reached()
        calls = later(*(process.call(functions.length, bytes(300_000)) for _ in range(9)))
        calls += later(process.call(functions.length, bytes(5_000_000)), process.call(functions.length, b""))
        await until(lambda: process.waiting == 12)
        gate.open()
        found = await asyncio.gather(*held, *calls)
        assert found == [1, *[300_000] * 9, 5_000_000, 0]
        assert [len(frame) for frame in frames] == [1, 4, 4, 2, 1]


async def test_large_arguments_and_answers_are_not_packed_within_the_loop(loop: Any, functions: Any) -> None:
    async with started() as process:
        data = os.urandom(3_000_000)
        assert await process.call(functions.echo, data, much=True) == data
        for much in (False, True):
            assert await process.call(functions.echo, functions.Packed(), much=much) is not much
        for count in (1000, 1_000_000):
            body, in_loop = await process.call(functions.opened, count)
            assert (len(body), in_loop) == (count, count == 1000)
        found = await asyncio.gather(*(process.call(functions.zeros, 200_000) for _ in range(64)))
        assert found == [bytes(200_000)] * 64
    await loop.shutdown_default_executor()


# Errors.


async def test_an_error_comes_back_as_it_is_and_is_its_calls_alone(loop: Any, functions: Any) -> None:
    async with started() as process:
        before, bad, after = await asyncio.gather(
            process.call(functions.echo, 1),
            error_of(process.call(functions.fail, "no such thing")),
            process.call(functions.echo, 2),
        )
        assert (before, after) == (1, 2)
        assert type(bad) is FileNotFoundError
        assert (bad.errno, bad.strerror, bad.__notes__) == (2, "no such thing", ["a note"])
        assert type(await error_of(process.call(int, "x"))) is ValueError


async def test_an_error_that_cannot_come_is_told_in_its_words(loop: Any, functions: Any) -> None:
    async with started() as process:
        for function, text in (
            (functions.fail_picky, "Picky: 429 slow down"),
            (functions.fail_locked, "KeyError: 'locked'"),
        ):
            error = await error_of(process.call(function))
            assert type(error) is RuntimeError
            assert str(error) == text
        error = await error_of(process.call(functions.stop))
        assert isinstance(error, RuntimeError)
        assert isinstance(error.__cause__, StopIteration)
        assert await process.call(functions.echo, 1) == 1


async def test_an_error_without_words_harms_nobody(loop: Any, functions: Any) -> None:
    async with started() as process:
        error, answer = await asyncio.gather(
            error_of(process.call(functions.fail_speechless)), process.call(functions.echo, 1)
        )
        assert type(error) is RuntimeError
        assert "Speechless" in str(error)
        assert answer == 1


async def test_what_cannot_be_sent_is_the_callers_error_and_harms_no_other(
    loop: Any, functions: Any, gate: Gate
) -> None:
    async with started() as process:
        held = later(process.call(functions.wait, gate.path))
        await gate.reached()
        before = later(process.call(functions.echo, 1))
        for much in (False, True):
            error = await error_of(process.call(functions.echo, threading.Lock(), much=much))
            assert isinstance(error, TypeError)
            assert "pickle" in str(error)
            error = await error_of(process.call(lambda: 1, much=much))
            assert isinstance(error, pickle.PicklingError | AttributeError)
        after = later(process.call(functions.echo, 2))
        await until(lambda: process.waiting == 3)
        gate.open()
        assert await asyncio.gather(*held, *before, *after) == [1, 1, 2]
        assert process.waiting == 0
    await loop.shutdown_default_executor()


async def test_what_cannot_be_unpacked_or_returned_is_its_calls_error_alone(
    loop: Any, functions: Any
) -> None:
    async with started() as process:
        there, lock, here, answer = await asyncio.gather(
            error_of(process.call(functions.echo, functions.Explosive())),
            error_of(process.call(functions.give_lock)),
            error_of(process.call(functions.give_explosive)),
            process.call(functions.echo, 1),
        )
        assert (type(there), str(there)) == (ValueError, "boom")
        assert isinstance(lock, TypeError)
        assert (type(here), str(here)) == (ValueError, "boom")
        assert answer == 1


async def test_a_caller_that_is_cancelled_harms_neither_its_neighbours_nor_the_order(
    loop: Any, functions: Any, gate: Gate, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    async with started() as process:
        held = later(process.call(functions.wait, gate.path))
        await gate.reached()
        calls = later(*(process.call(functions.note, str(notes), f"{number}") for number in range(80)))
        # Of the second message, which is on its way, and of those that wait.
        await until(lambda: process.waiting == 81)
        for number in (0, 5, 31, 32, 40, 79):
            calls[number].cancel()
        held[0].cancel()
        await asyncio.wait([held[0], calls[79]])
        assert process.waiting == 81  # they are still to be done
        calls += later(process.call(functions.note, str(notes), "80"))
        gate.open()
        found = await asyncio.gather(*calls, return_exceptions=True)
        for number, each in enumerate(found):
            assert each == str(number) or (
                isinstance(each, asyncio.CancelledError) and calls[number].cancelled()
            )
        assert sum(call.cancelled() for call in calls) == 6
        assert process.waiting == 0
    assert notes.read_text().split() == [str(number) for number in range(81)]


# Ends.


@pytest.mark.parametrize("way", ["killed", "exits", "leaves"])
async def test_when_it_ends_all_calls_end(loop: Any, functions: Any, gate: Gate, way: str) -> None:
    async with started() as process:
        if way == "killed":
            calls = later(process.call(functions.wait, gate.path))
            await gate.reached()
            calls += later(*(process.call(functions.echo, number) for number in range(100)))
            await until(lambda: process.waiting == 101)
            calls[50].cancel()
            os.kill(process._process.pid, signal.SIGKILL)
        else:
            deadly = functions.end if way == "exits" else functions.leave
            calls = later(process.call(deadly, 3), *(process.call(functions.echo, n) for n in range(100)))
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(each) for number, each in enumerate(found) if number != 50} == {CoprocessEnded}
        assert process.waiting == 0
        for much in (False, True):
            assert isinstance(await error_of(process.call(functions.echo, 1, much=much)), CoprocessEnded)
        assert process.waiting == 0
        assert await process.kill() == (-signal.SIGKILL if way == "killed" else 3)
        assert gone(process._process.pid)
        await process.aclose()
    await loop.shutdown_default_executor()


@pytest.mark.parametrize("way", ["close", "abort"])
async def test_what_is_asked_as_it_ends_ends_too(loop: Any, functions: Any, way: str) -> None:
    """Between the end of the connection and the moment at which that is told."""
    async with started() as process:
        transport = process._channel._transport
        assert transport is not None
        answers = [process._channel.ask(pickle.dumps((functions.echo, (1,)))) for _ in range(40)]
        getattr(transport, way)()
        answers.append(process._channel.ask(pickle.dumps((functions.echo, (1,)))))
        await asyncio.wait(answers)
        assert {type(answer.exception()) for answer in answers} == {CoprocessEnded}
        assert process.waiting == 0


async def test_closing_lets_it_finish_what_it_was_asked(
    loop: Any, functions: Any, gate: Gate, tmp_path: Path
) -> None:
    process = await Coprocess.start()
    notes = str(tmp_path / "notes")
    calls = later(process.call(functions.wait, gate.path))
    await gate.reached()
    calls += later(*(process.call(functions.note, notes, f"{number}") for number in range(70)))
    await until(lambda: process.waiting == 71)
    closing = asyncio.create_task(process.aclose())
    await until(lambda: process.waiting == 72)
    assert not closing.done()
    gate.open()
    await closing
    assert gone(process._process.pid)
    assert await asyncio.gather(*calls) == [1, *map(str, range(70))]
    assert isinstance(await error_of(process.call(functions.echo, 1)), CoprocessEnded)
    assert process.waiting == 0


async def test_closing_waits_for_arguments_that_are_being_packed(
    loop: Any, functions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing, go_on = threading.Event(), threading.Event()
    pickled = coprocess._pickled

    def slow(value: object) -> bytes:
        if not functions.in_main_thread():
            packing.set()
            go_on.wait(10)
        return pickled(value)

    monkeypatch.setattr(coprocess, "_pickled", slow)
    process = await Coprocess.start()
    (call,) = later(process.call(functions.echo, "much", much=True))
    await until(packing.is_set)
    closing = asyncio.create_task(process.aclose())
    await asyncio.wait([closing], timeout=0.1)
    go_on.set()
    await closing
    assert await call == "much"
    await loop.shutdown_default_executor()


@pytest.mark.parametrize("work", ["compute", "compute_alone"])
async def test_it_is_killed_whatever_it_is_at(loop: Any, functions: Any, tmp_path: Path, work: str) -> None:
    async with started() as process:
        (call,) = later(process.call(getattr(functions, work), str(tmp_path / "pid")))
        pid = await pid_in(tmp_path / "pid")
        try:
            async with asyncio.timeout(5):
                await process.kill()
        finally:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
        assert isinstance(await error_of(call), CoprocessEnded)
        assert await process.kill() == await process.kill()


async def test_it_is_killed_though_another_process_has_its_ends_open_too(
    loop: Any, functions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one has that this process has forked."""
    monkeypatch.setattr(coprocess, "_GOODBYE", 0.05)
    async with started() as process:
        (call,) = later(process.call(functions.compute_alone, str(tmp_path / "pid")))
        pid = await pid_in(tmp_path / "pid")
        transport, lifeline = process._channel._transport, process._channel.lifeline
        assert transport is not None
        assert lifeline is not None
        others = [os.dup(lifeline), os.dup(transport.get_extra_info("socket").fileno())]
        assert await process.kill() == -signal.SIGKILL
        assert gone(pid)
        assert isinstance(await error_of(call), CoprocessEnded)
        for other in others:
            os.close(other)


@pytest.mark.parametrize("late", [False, True])
async def test_a_start_that_is_cancelled_leaves_nothing(loop: Any, late: bool) -> None:
    """At each place where it waits: as it begins to, or as that has come to its end."""

    async def start(step: int) -> Coprocess:
        task = asyncio.current_task()
        assert task is not None

        def cancel(waited: asyncio.Future[Any] | None) -> None:
            if late and waited is not None:
                waited.add_done_callback(lambda _: task.cancel())
            else:
                task.cancel()

        process: Coprocess = await at_step(Coprocess.start(), step, cancel)
        return process

    before, step = children(), 0
    while True:
        (task,) = later(start(step))
        await asyncio.wait([task])
        if not task.cancelled():
            break
        assert children() == before, f"at step {step}"
        step += 1
    assert step > 2
    await task.result().kill()


@pytest.mark.parametrize("program", ["/bin/false", "/nonexistent", "/etc"])
async def test_where_no_interpreter_can_be_started_nothing_is_left(
    loop: Any, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children()
    monkeypatch.setattr(sys, "executable", program)
    error = await error_of(Coprocess.start())
    assert isinstance(error, CoprocessEnded if program == "/bin/false" else OSError)
    assert children() == before


async def test_where_descriptors_run_out_none_is_left(loop: Any) -> None:
    before = children()
    allowed, first = resource.getrlimit(resource.RLIMIT_NOFILE), os.dup(0)
    os.close(first)
    for more in range(30):
        resource.setrlimit(resource.RLIMIT_NOFILE, (first + more, allowed[1]))
        (start,) = later(Coprocess.start())
        try:
            await asyncio.wait([start])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, allowed)
        if start.exception() is None:
            await start.result().kill()
            break
        assert getattr(start.exception(), "errno", None) == errno.EMFILE
        assert children() == before
    assert 1 < more < 29


async def test_there_can_be_none_in_another_program(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert coprocess.possible()
    for name, value in (("frozen", True), ("executable", None), ("executable", "")):
        with monkeypatch.context() as patch:
            patch.setattr(sys, name, value, raising=False)
            assert not coprocess.possible()
            assert isinstance(await error_of(Coprocess.start()), CoprocessEnded)


# What it has, and what it does not take from this process.


async def test_it_has_what_it_inherits_open_and_nothing_else(
    loop: Any, functions: Any, tmp_path: Path
) -> None:
    mine, its = tmp_path / "mine", tmp_path / "its"
    with mine.open("w") as kept, its.open("w") as given:
        os.set_inheritable(kept.fileno(), True)
        async with started(inherited=[given.fileno()]) as process:
            await process.call(os.write, given.fileno(), b"written there")
            found = await process.call(functions.descriptors)
            assert str(its) in found
            assert str(mine) not in found
            assert sum(name.startswith("socket:") for name in found) == 1
    assert its.read_text() == "written there"


def program(text: str, folder: Path) -> Path:
    path = folder / "program.py"
    path.write_text(textwrap.dedent(text))
    return path


def run_program(path: Path, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        env={**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{HERE}"},
        cwd=cwd,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_neither_the_main_module_nor_the_working_directory_is_imported(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("json", "unwait", "pickle", "socket", "coprocess_functions"):
        (here / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    path = program(
        """
        import asyncio, coprocess_functions
        from unwait.flow.coprocess import Coprocess

        print("imported")  # and no guard: it is for this process alone

        async def main():
            process = await Coprocess.start()
            found = await process.call(coprocess_functions.modules)
            print(*(found[name] for name in ("json", "unwait", "pickle", "socket", "coprocess_functions")))
            print(repr(found["__main__"]))
            await process.aclose()

        asyncio.run(main())
        """,
        tmp_path,
    )
    with run_program(path, cwd=here) as process:
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    first, found, main = said.splitlines()
    assert first == "imported"
    assert not any(name.startswith(str(here)) for name in found.split())
    assert main == "''"


def test_a_program_that_has_moved_elsewhere_still_imports_its_own(tmp_path: Path) -> None:
    """Of one that was given as text, the first place to look in is the working directory, whichever that is then."""
    there = tmp_path / "there"
    there.mkdir()
    (there / "unwait.py").write_text("raise SystemExit('the wrong module')")
    text = """
        import asyncio, os, sys
        from unwait.flow.coprocess import Coprocess

        async def main():
            assert sys.path[0] == ""
            os.chdir(sys.argv[1])
            process = await Coprocess.start()
            await process.aclose()

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), str(there)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("work", ["compute", "compute_alone", "nothing"])
def test_it_is_gone_with_a_process_that_is_killed_whatever_it_is_at(tmp_path: Path, work: str) -> None:
    path = program(
        """
        import asyncio, sys, coprocess_functions
        from unwait.flow.coprocess import Coprocess

        async def main():
            process = await Coprocess.start()
            if sys.argv[1] == "nothing":
                await process.call(coprocess_functions.begin, sys.argv[2])
                await asyncio.sleep(1000)
            await process.call(getattr(coprocess_functions, sys.argv[1]), sys.argv[2])

        asyncio.run(main())
        """,
        tmp_path,
    )
    told = tmp_path / "pid"
    with run_program(path, work, str(told)) as process:
        while not told.exists():
            assert process.poll() is None
        pid = int(told.read_text())
        assert not gone(pid)
        process.kill()
        process.wait()
    try:
        await_end(pid)
    finally:
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)


def test_an_interruption_of_the_program_does_not_reach_it(tmp_path: Path) -> None:
    path = program(
        """
        import asyncio, os, signal, coprocess_functions
        from unwait.flow.coprocess import Coprocess

        async def main():
            seen = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, seen.set)
            process = await Coprocess.start()
            os.killpg(os.getpgrp(), signal.SIGINT)
            await seen.wait()
            # And of a service manager, which tells all processes.
            os.kill(await process.call(os.getpid), signal.SIGTERM)
            print(await process.call(coprocess_functions.echo, "still there"))
            await process.aclose()

        asyncio.run(main())
        """,
        tmp_path,
    )
    with run_program(path) as process:
        said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "still there\n")


# Messages.


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""

    def is_closing(self) -> bool:
        return False

    def writelines(self, pieces: Any) -> None:
        self.data += b"".join(pieces)


def parts(data: bytes) -> list[list[bytes]]:
    """The messages of the wire, each as the parts it has, read by what is said of the format alone."""
    found = []
    while data:
        (size,) = struct.unpack_from("<Q", data)
        message, data = data[8 : 8 + size], data[8 + size :]
        assert len(message) == size
        found.append([])
        while message:
            (size,) = struct.unpack_from("<Q", message)
            found[-1].append(message[8 : 8 + size])
            assert len(found[-1][-1]) == size
            message = message[8 + size :]
    return found


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=40))
def test_a_message_is_taken_apart_as_it_was_put_together(messages: list[bytes]) -> None:
    frame = b"".join(coprocess._framed(messages))
    assert parts(frame) == [messages]
    assert coprocess._parts(memoryview(frame)[8:]) == messages


@given(
    groups=st.lists(
        st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), min_size=1, max_size=50),
        min_size=1,
        max_size=4,
    ),
    data=st.data(),
)
def test_each_call_has_its_answer_however_the_bytes_come(
    groups: list[list[tuple[bytes, bytes]]], data: st.DataObject
) -> None:
    async def main() -> None:
        channel, wire = coprocess._Channel(), Wire()
        channel.connection_made(wire)
        asked: list[asyncio.Future[bytes]] = []
        expected: list[bytes] = []
        seen = answered = 0

        def answer() -> None:
            """All that has been sent, in slices."""
            nonlocal seen, answered
            reply = b""
            messages = parts(wire.data)
            assert len(messages) - seen <= 2
            for message in messages[seen:]:
                assert message == calls[answered : answered + len(message)]
                reply += b"".join(coprocess._framed(expected[answered : answered + len(message)]))
                answered += len(message)
            seen = len(messages)
            while reply:
                count = data.draw(st.integers(1, len(reply)))
                slice, reply = reply[:count], reply[count:]
                channel.data_received(slice)

        calls = []
        for group in groups:
            for call, reply in group:
                calls.append(call)
                expected.append(reply)
                asked.append(channel.ask(call))
            await asyncio.sleep(0)
            if data.draw(st.booleans()):
                answer()
        while answered < len(calls):
            answer()
        assert [future.result() for future in asked] == expected
        assert channel.waiting == 0

    asyncio.run(main())
