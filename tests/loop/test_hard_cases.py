"""The edges of other people's code: descriptors that change hands, callbacks that raise, interrupt, or are late."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from typing import Any

import pytest

from .support import turns


@contextlib.contextmanager
def socket_pair():
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


async def test_a_wait_does_not_read_from_whoever_got_the_number(loop, loop_kind):
    """A socket closed while somebody waits for it, its number given to another, and both ready in one report."""
    with socket_pair() as (near, far), socket_pair() as (other, peer):
        reading = asyncio.ensure_future(loop.sock_recv(near, 100))
        await turns()
        far.send(b"mine")
        number = near.fileno()
        near.close()
        stranger = os.dup(other.fileno())
        assert stranger == number
        peer.send(b"strange")
        await turns(10)
        if loop_kind == "unwait":
            # The kernel drops the registration with the file, so the wait goes on; it must never end with the data.
            assert not reading.done() or isinstance(reading.exception(), OSError)
        assert other.recv(100) == b"strange"
        reading.cancel()
        await asyncio.wait([reading])
        os.close(stranger)


class RaisesWhenLost(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, exc):
        raise ValueError("from connection_lost")


async def test_an_exception_in_connection_lost_ends_nothing_else(loop, loop_errors):
    """Also where a close had to wait until everything was written, and comes out of an event."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        transport, _ = await loop.create_connection(RaisesWhenLost, *listener.getsockname())
        connection, _ = listener.accept()
    with connection:
        transport.write(bytes(20_000_000))
        transport.close()
        connection.setblocking(False)
        received = 0
        with contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(connection, 1 << 20):
                received += len(data)
        assert received == 20_000_000
        await turns(10)
    assert [str(error["exception"]) for error in loop_errors] == ["from connection_lost"]
    loop_errors.clear()


async def test_a_reader_and_a_call_on_the_same_socket(loop):
    """`add_reader` and `sock_sendall` share a descriptor, as they do in asyncio."""
    with socket_pair() as (near, far):
        seen: list[bytes] = []
        loop.add_reader(near, lambda: seen.append(near.recv(100)))
        await loop.sock_sendall(near, b"out")
        far.send(b"in")
        while not seen:
            await asyncio.sleep(0)
        assert seen == [b"in"]
        assert loop.remove_reader(near) is True
        far.send(b"late")
        await turns(20)
        assert seen == [b"in"]
        assert far.recv(100) == b"out"


async def test_a_reader_is_removed_after_its_socket_was_closed(loop, loop_kind):
    near, far = socket.socketpair()
    loop.add_reader(near, print)
    near.close()
    far.close()
    try:
        assert loop.remove_reader(near) is True
    except ValueError:  # asyncio before 3.12 does not know it any more
        assert loop_kind == "asyncio"


async def test_calls_on_a_transports_socket_are_refused(loop):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        transport, _ = await loop.create_connection(asyncio.Protocol, *listener.getsockname())
        connection, _ = listener.accept()
    with connection:
        with pytest.raises(RuntimeError, match="is used by transport"):
            await loop.sock_recv(transport.get_extra_info("socket")._sock, 10)
        transport.abort()
        await turns(5)


class Collects(asyncio.Protocol):
    def __init__(self):
        self.ended = asyncio.get_running_loop().create_future()

    def eof_received(self):
        self.ended.set_result("eof")

    def connection_lost(self, exc):
        if not self.ended.done():
            self.ended.set_result(exc)


async def test_devices_that_are_always_ready(loop, loop_kind):
    """epoll does not watch /dev/null; programs run with it as their input and output all the same."""
    with open(os.devnull, "wb", buffering=0) as sink:
        transport, _ = await loop.connect_write_pipe(asyncio.Protocol, sink)
        transport.write(b"to nowhere")
        transport.close()
        await turns(5)
    if loop_kind == "unwait":  # asyncio connects, logs an error, and never reads
        with open(os.devnull, "rb", buffering=0) as source:
            _, protocol = await loop.connect_read_pipe(Collects, source)
            assert await protocol.ended == "eof"
            await turns(5)


async def test_pausing_after_the_end_does_not_spin(loop):
    """A half-closed Unix connection that is paused and resumed is not reported for ever."""
    calls: list[str] = []

    class HalfClosed(asyncio.Protocol):
        def eof_received(self):
            calls.append("eof")
            return True

    near, far = socket.socketpair()
    transport, _ = await loop.connect_accepted_socket(HalfClosed, near)
    with far:
        far.shutdown(socket.SHUT_WR)
        while not calls:
            await asyncio.sleep(0)
        transport.pause_reading()
        transport.resume_reading()
        before = os.times()
        await asyncio.sleep(0.2)
        after = os.times()
        assert after.user + after.system - before.user - before.system < 0.15
        transport.close()
        await turns(5)


def test_an_interrupt_while_reading_loses_no_writing(loop):
    """The report that brought the interrupted read also said that there is room to write; it is not repeated."""
    size = 8_000_000

    class Interrupted(asyncio.Protocol):
        def data_received(self, data):
            raise KeyboardInterrupt

    async def connect():
        listener = socket.create_server(("127.0.0.1", 0))
        transport, _ = await loop.create_connection(Interrupted, *listener.getsockname())
        connection, _ = listener.accept()
        listener.close()
        connection.setblocking(False)
        transport.write(bytes(size))
        return transport, connection

    transport, connection = loop.run_until_complete(connect())
    received = len(connection.recv(1 << 22))
    connection.send(b"!")
    waiting = loop.create_future()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(waiting)

    async def rest():
        nonlocal received
        while received < size:
            received += len(await loop.sock_recv(connection, 1 << 20))
        transport.abort()
        await turns(5)

    loop.run_until_complete(asyncio.wait_for(rest(), 20))
    connection.close()


async def test_other_work_does_not_shut_out_the_network(loop):
    """A task that yields between long steps is cooperative: events are looked at between its steps."""
    with socket_pair() as (near, far):
        seen: list[bytes] = []
        loop.add_reader(near, lambda: seen.append(near.recv(100)))
        await turns(100)  # so many rounds without an event that they are looked for less often
        far.send(b"news")
        steps = 0
        while not seen:
            deadline = loop.time() + 0.001
            while loop.time() < deadline:
                pass
            await asyncio.sleep(0)
            steps += 1
        assert steps <= 20
        far.send(b"more")
        steps = 0
        while len(seen) < 2:
            await asyncio.sleep(0)
            steps += 1
        assert steps <= 20
        loop.remove_reader(near)


def test_another_clock_is_the_clock(loop_factory):
    """A subclass may have a time of its own: timers go by it."""

    class Slow(type(probe(loop_factory))):  # type: ignore[misc]
        def time(self):
            return super().time() / 10 + 1000

    loop = Slow()
    try:
        assert loop.call_later(5, print).when() == pytest.approx(loop.time() + 5, abs=0.1)
        started = loop.time()
        loop.run_until_complete(asyncio.sleep(0.01))
        assert loop.time() - started >= 0.01
    finally:
        loop.close()


def probe(loop_factory: Any) -> asyncio.AbstractEventLoop:
    loop = loop_factory()
    loop.close()
    return loop


def test_the_wakeup_descriptor_is_given_back(loop):
    """A handler added before a run and removed in it: nothing writes into a descriptor that is closed since."""
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.call_soon(loop.remove_signal_handler, signal.SIGUSR1)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert threading.current_thread() is threading.main_thread()
    assert signal.set_wakeup_fd(-1) == -1
