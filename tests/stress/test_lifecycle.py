"""A thousand loops made, used and closed leave fds, threads, memory and objects where they were."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import threading
import weakref
from collections.abc import Callable

import pytest

CYCLES = 1_000
GROWTH = 1_500_000  # bytes that the second half of the cycles may add: 3 KB a loop


async def use_a_bit_of_everything(cycle: int) -> None:
    loop = asyncio.get_running_loop()
    fired = asyncio.Event()
    loop.call_later(0, fired.set)
    never = loop.call_later(3_600, fired.clear)
    await fired.wait()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
    transport.write(b"hello")
    datagrams, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.send(b"x")
        assert await loop.sock_recv(left, 1) == b"x"
        readable = asyncio.Event()
        loop.add_reader(left, readable.set)
        right.send(b"y")
        await readable.wait()
        loop.remove_reader(left)
    loop.call_soon_threadsafe(fired.clear)
    if cycle % 10 == 0:
        loop.add_signal_handler(signal.SIGUSR1, fired.set)
        assert await loop.run_in_executor(None, threading.get_ident) != threading.get_ident()
    if cycle % 2:
        transport.close()
        datagrams.close()
        server.close()
        never.cancel()
        await asyncio.sleep(0)
    else:  # the other half of the loops is closed over dropped connections and a waiting timer
        transport.abort()
        datagrams.abort()
        server.close()
    await asyncio.sleep(0)


def test_thousand_loops_leave_nothing(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
    open_fds: Callable[[], dict[int, str]],
    resident: Callable[[], int],
) -> None:
    def cycles(count: int) -> None:
        for cycle in range(count):
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(use_a_bit_of_everything(cycle))
        gc.collect()

    cycles(20)
    fds, threads = open_fds(), threading.active_count()
    cycles(CYCLES // 2)
    at_half = resident()
    cycles(CYCLES // 2)
    assert resident() - at_half < GROWTH
    assert open_fds() == fds
    assert threading.active_count() == threads
    assert signal.getsignal(signal.SIGUSR1) in (signal.SIG_DFL, None)
    assert signal.set_wakeup_fd(-1) == -1


def test_closed_loop_is_freed_with_what_it_held(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    class Held:
        def callback(self) -> None:
            raise AssertionError("not meant to run")

    for _ in range(10):
        loop, held = loop_factory(), Held()
        loop.call_soon(held.callback)
        loop.call_later(1, held.callback)
        left, right = socket.socketpair()
        loop.add_reader(left, held.callback)
        loop.remove_reader(left)
        left.close()
        right.close()
        was = weakref.ref(held)
        loop.close()
        del held
        gc.collect()
        assert was() is None
        was_loop = weakref.ref(loop)
        del loop
        gc.collect()
        assert was_loop() is None


def test_loops_side_by_side_in_threads(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], open_fds: Callable[[], dict[int, str]]
) -> None:
    """Eight threads make, use and close loops at the same time; each echo stays with its own loop."""
    failures: list[BaseException] = []
    fds = open_fds()

    async def echo(number: int) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"%d\n" % number)
            assert await reader.read() == b"%d\n" % number
            writer.close()
            await writer.wait_closed()

    def live(thread: int) -> None:
        try:
            for cycle in range(40):
                with asyncio.Runner(loop_factory=loop_factory) as runner:
                    runner.run(echo(thread * 1_000 + cycle))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    gc.collect()
    assert open_fds() == fds


def test_dropped_without_close_warns_and_frees_its_fds(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], open_fds: Callable[[], dict[int, str]]
) -> None:
    gc.collect()
    fds = open_fds()

    def drop() -> None:
        loop_factory()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        drop()
    gc.collect()
    assert open_fds() == fds
