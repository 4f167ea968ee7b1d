"""A process beside this one that runs functions for the loop, one after the other, in the order in which it is asked.

It differs from the processes of `unwait.flow.workers` in what it is for: many short calls of the library's own
functions, whose way there and back counts. The loop talks with it itself, over a pair of sockets, and what is asked
while it is busy goes there together and comes back together: to wake each other is what costs most. It does not import
the main module, which is why the functions, and what they are given and return, must be of modules.

It lives as long as the other end is open: whatever becomes of this process, it is gone at once.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, BinaryIO, Self, cast

_START = (
    "import json, sys; descriptor, lifeline, sys.path[:] = json.loads(sys.argv[1]); "
    "from unwait.flow.coprocess import serve; serve(descriptor, lifeline)"
)
_DIRECTORY = ""  # where an empty name of sys.path leads; later the working directory may be anybody's
with suppress(OSError):
    _DIRECTORY = os.getcwd()
_LENGTH = struct.Struct("<Q")
_TOGETHER = 32  # calls in a message
_BYTES_TOGETHER = 1 << 20
_UNDER_WAY = 2  # messages: one that is worked on, and the next
_GOODBYE = 1.0  # seconds for a process to leave when it is hung up on
_MUCH = 256 << 10  # bytes of an answer which are not taken apart in the loop's thread


class CoprocessEnded(Exception):
    """The process ended before it answered."""


def possible() -> bool:
    """Whether there can be such processes: not where the interpreter is a part of another program."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


class Coprocess:
    """The end that asks; to be started with `start`, and ended with `aclose`. It belongs to one loop."""

    def __init__(self, process: asyncio.subprocess.Process, channel: _Channel) -> None:
        self._process = process
        self._channel = channel
        self._packing: set[asyncio.Future[bytes]] = set()

    @classmethod
    async def start(cls, *, inherited: Sequence[int] = ()) -> Self:
        """Begin one, which has the descriptors that are `inherited` open too. Raises OSError, CoprocessEnded."""
        if not possible():
            raise CoprocessEnded("there can be none: the interpreter is a part of another program")
        ours, theirs = socket.socketpair()
        channel = _Channel()
        paths = [str(path or _DIRECTORY) for path in sys.path]
        with theirs, ExitStack() as stack:
            await asyncio.get_running_loop().create_connection(lambda: channel, sock=ours)
            try:
                lifeline, channel.lifeline = os.pipe()
                stack.callback(os.close, lifeline)
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    # As this one was begun: where files are depends on it (-X utf8), and whose code is run (-I).
                    *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]
                    "-P",
                    "-c",
                    _START,
                    json.dumps([theirs.fileno(), lifeline, paths]),
                    # The threads of numpy's BLAS would spin for 50 ms before they find out that there is nothing to do.
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), lifeline, *inherited),
                    start_new_session=True,  # a Ctrl-C is this process's, which decides what is still to be done
                )
            except BaseException:
                channel.hang_up()
                raise
        self = cls(process, channel)
        try:
            await self.call(os.getpid)
        except BaseException:
            await self.kill()
            raise
        return self

    @property
    def waiting(self) -> int:
        """How many calls have not been answered."""
        return self._channel.waiting

    async def call(self, function: Callable[..., Any], *arguments: Any, much: bool = False) -> Any:
        """What the function of a module returns there. Raises what it raises, and CoprocessEnded.

        `much` says that its arguments are not to be made bytes of within the loop's thread; those of two calls at the
        same time may change places.
        """
        request = (function, arguments)
        if much:
            packing = asyncio.get_running_loop().run_in_executor(None, _pickled, request)
            self._packing.add(packing)
            packing.add_done_callback(self._packing.discard)
            answer = await self._channel.ask(await packing)
        else:
            answer = await self._channel.ask(_pickled(request))
        value, error = (
            await asyncio.to_thread(pickle.loads, answer) if len(answer) > _MUCH else pickle.loads(answer)
        )
        if error is not None:
            raise error
        return value

    async def aclose(self) -> None:
        """Let it finish what it was asked, and end."""
        while self._packing:
            await asyncio.wait(self._packing)
        with suppress(CoprocessEnded):
            await self.call(os.getpid)
        await self.kill()

    async def kill(self) -> int:
        """End it, whatever it is at; its exit code, negative for a signal."""
        self._channel.hang_up()
        with suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE):
                return await self._process.wait()
        # A fork of this process has the descriptors open as well; or it is another program than Python.
        with suppress(ProcessLookupError):
            self._process.kill()
        return await self._process.wait()


class _Channel(asyncio.Protocol):
    """Requests on their way, and who waits for what becomes of them."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._asked: deque[tuple[bytes, asyncio.Future[bytes]]] = deque()
        self._under_way: deque[list[asyncio.Future[bytes]]] = deque()
        self._received = bytearray()
        self.waiting = 0
        self.lifeline: int | None = None  # of the process, which is gone once this is closed

    def ask(self, message: bytes) -> asyncio.Future[bytes]:
        """Its answer; raises CoprocessEnded."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        if self._transport is None:
            answer.set_exception(CoprocessEnded("it has ended"))
            return answer
        self.waiting += 1
        self._asked.append((message, answer))
        if len(self._asked) == 1 and len(self._under_way) < _UNDER_WAY:
            loop.call_soon(self._proceed)
        return answer

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _proceed(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return  # asyncio's does not expect to be written to then
        while self._asked and len(self._under_way) < _UNDER_WAY:
            messages: list[bytes] = []
            answers: list[asyncio.Future[bytes]] = []
            size = 0
            while self._asked and len(messages) < _TOGETHER and size < _BYTES_TOGETHER:
                message, answer = self._asked.popleft()
                messages.append(message)
                answers.append(answer)
                size += len(message)
            self._under_way.append(answers)
            self._transport.writelines(_framed(messages))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._received)
            end = _LENGTH.size + size
            if len(self._received) < end:
                return
            with memoryview(self._received) as received, received[_LENGTH.size : end] as frame:
                found = _parts(frame)
            del self._received[:end]
            answers = self._under_way.popleft()
            self.waiting -= len(answers)
            for answer, part in zip(answers, found, strict=True):
                if not answer.done():
                    answer.set_result(part)
        self._proceed()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self.lifeline is not None:
            os.close(self.lifeline)
        answers = [answer for answers in self._under_way for answer in answers]
        for answer in [*answers, *(answer for _, answer in self._asked)]:
            if not answer.done():
                answer.set_exception(CoprocessEnded("it ended before it answered"))
        self._under_way.clear()
        self._asked.clear()
        self.waiting = 0


# A frame is its length, and parts, each with its own.


def _framed(messages: Sequence[bytes]) -> list[bytes]:
    pieces = [_LENGTH.pack(sum(map(len, messages)) + _LENGTH.size * len(messages))]
    for message in messages:
        pieces += _LENGTH.pack(len(message)), message
    return pieces


def _parts(frame: memoryview) -> list[bytes]:
    parts, start = [], 0
    while start < len(frame):
        (size,) = _LENGTH.unpack_from(frame, start)
        start += _LENGTH.size
        parts.append(bytes(frame[start : start + size]))
        start += size
    return parts


def _pickled(value: object) -> bytes:
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


# In the process.


def serve(descriptor: int, lifeline: int) -> None:
    """Run what is asked for, until the other end is closed."""
    if hasattr(fcntl, "F_SETSIG"):
        # A thread cannot do anything while a function holds the interpreter's lock; the system can.
        with suppress(OSError):
            fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)
    threading.Thread(target=_end_with_the_other, args=(descriptor,), daemon=True).start()
    # A service manager tells all processes to end: this one is the other's, which lets what runs finish.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    frozen = False
    with (
        suppress(OSError),
        socket.socket(fileno=descriptor) as connection,
        connection.makefile("rb") as requests,
    ):
        while (frame := _frame(requests)) is not None:
            answers = [_answer(part) for part in _parts(frame)]
            connection.sendall(b"".join(_framed(answers)))
            if len(answers) > 1 and not frozen:
                # What is loaded by now stays; to look through it again and again took an eighth of a reader's time.
                frozen = True
                gc.collect()
                gc.freeze()


def _frame(requests: BinaryIO) -> memoryview | None:
    header = requests.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(header)
    frame = requests.read(size)
    return memoryview(frame) if len(frame) == size else None


def _end_with_the_other(descriptor: int) -> None:
    """What is still to be read is not done any more: nobody is there who would know of it."""
    poll = select.poll()
    poll.register(descriptor, 0)
    poll.poll()
    os._exit(0)


def _answer(message: bytes) -> bytes:
    try:
        function, arguments = pickle.loads(message)
        return _pickled((function(*arguments), None))
    except Exception as error:
        try:
            answer = _pickled((None, error))
            pickle.loads(answer)
        except Exception:
            return _pickled((None, RuntimeError(_words(error))))
        return answer


def _words(error: Exception) -> str:
    with suppress(Exception):
        return f"{type(error).__name__}: {error}"
    return type(error).__name__
