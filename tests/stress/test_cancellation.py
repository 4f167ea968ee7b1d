"""Cancellation storms: thousands of waits of every kind, cancelled at every stage; nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import random
import select
import socket
from collections.abc import Awaitable, Callable
from functools import partial

SEED = 99


async def test_ten_thousand_waits_cancelled_at_once() -> None:
    loop = asyncio.get_running_loop()
    lock, event, queue = asyncio.Lock(), asyncio.Event(), asyncio.Queue[int]()
    semaphore, condition = asyncio.Semaphore(1), asyncio.Condition()
    await lock.acquire()
    await semaphore.acquire()

    async def wait_condition() -> None:
        async with condition:
            await condition.wait()

    async def in_timeout() -> None:
        async with asyncio.timeout(3_600):
            await asyncio.sleep(3_600)

    async def in_group() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(3_600))
            group.create_task(event.wait())  # type: ignore[arg-type]

    waits: list[Callable[[], Awaitable[object]]] = [
        lambda: asyncio.sleep(3_600),
        lock.acquire,
        event.wait,
        queue.get,
        semaphore.acquire,
        wait_condition,
        in_timeout,
        in_group,
        lambda: asyncio.wait_for(event.wait(), 3_600),
        lambda: asyncio.gather(event.wait(), queue.get()),
    ]

    async def wait(number: int) -> None:
        await waits[number % len(waits)]()

    rng = random.Random(SEED)
    for stage in range(4):
        tasks = [loop.create_task(wait(number)) for number in range(2_500)]
        for _ in range(stage):
            await asyncio.sleep(0)
        rng.shuffle(tasks)
        for task in tasks:
            task.cancel()
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    # Nobody who was cancelled took the lock, the permit or the item with him.
    lock.release()
    semaphore.release()
    await queue.put(1)
    assert not lock.locked()
    assert not semaphore.locked()
    assert await queue.get() == 1


async def test_cancelled_sock_recv_takes_no_data() -> None:
    """Each receive is cancelled at some stage; the bytes are then read by the next one, all and in order."""
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()
    rng = random.Random(SEED)
    sent, got, cancelled = bytearray(), bytearray(), 0
    with left, right:
        left.setblocking(False)
        for number in range(2_000):
            task = loop.create_task(loop.sock_recv(left, 1_000))
            stages = rng.randrange(4)
            if stages > 1:
                await asyncio.sleep(0)
            message = b"%d," % number
            right.send(message)
            sent += message
            if stages > 2:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                cancelled += 1
            else:
                got += task.result()
        right.close()
        while data := await loop.sock_recv(left, 1_000):
            got += data
        assert got == sent
        assert cancelled > 500


async def test_cancelled_accept_and_connect_leave_the_sockets_usable() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        for ticks in range(300):
            accepting = loop.create_task(loop.sock_accept(listener))
            for _ in range(ticks % 4):
                await asyncio.sleep(0)
            accepting.cancel()
            assert isinstance(
                (await asyncio.gather(accepting, return_exceptions=True))[0], asyncio.CancelledError
            )
        finished = 0
        for ticks in range(300):
            with socket.socket() as client:
                client.setblocking(False)
                connecting = loop.create_task(loop.sock_connect(client, listener.getsockname()))
                for _ in range(ticks % 6):
                    await asyncio.sleep(0)
                connecting.cancel()
                if (await asyncio.gather(connecting, return_exceptions=True))[0] is None:
                    finished += 1
                    await loop.sock_sendall(client, b"%d" % ticks)
                    served, peer = await loop.sock_accept(listener)
                    with served:
                        assert peer == client.getsockname()
                        assert await loop.sock_recv(served, 10) == b"%d" % ticks
            while readable(listener):  # the kernel had connected it in spite of the cancellation
                served, _ = await loop.sock_accept(listener)
                served.close()
        assert 0 < finished < 300


def readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


async def test_cancelled_sock_sendall_stops_sending() -> None:
    loop = asyncio.get_running_loop()
    payload = bytes(4_000_000)
    for ticks in range(40):
        left, right = socket.socketpair()
        with left, right:
            left.setblocking(False)
            right.setblocking(False)
            sending = loop.create_task(loop.sock_sendall(left, payload))
            got = 0
            for _ in range(1 + ticks % 5):
                await asyncio.sleep(0)
                got += len(await loop.sock_recv(right, 100_000))
            sending.cancel()
            assert isinstance(
                (await asyncio.gather(sending, return_exceptions=True))[0], asyncio.CancelledError
            )
            left.close()
            while data := await loop.sock_recv(right, 1_000_000):
                got += len(data)
            assert got < len(payload)


async def test_cancelled_readers_of_streams_lose_no_bytes() -> None:
    """A reader that is cancelled over and over leaves every byte for the next one."""
    total = 20_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(total):
            writer.write(b"%d\n" % number)
            if number % 50 == 0:
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        rng = random.Random(SEED)
        lines, cancelled = [], 0
        while True:
            task = asyncio.ensure_future(reader.readline())
            if rng.random() < 0.2:
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                cancelled += 1
                continue
            line = task.result()
            if not line:
                break
            lines.append(int(line))
        writer.close()
        await writer.wait_closed()
    assert lines == list(range(total))
    assert cancelled > 1_000


async def test_connects_cancelled_by_the_thousand_leave_no_transport() -> None:
    loop = asyncio.get_running_loop()
    made, lost = [0], [0]
    quiet = asyncio.Event()

    class Counted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made[0] += 1
            quiet.clear()

        def connection_lost(self, exc: Exception | None) -> None:
            lost[0] += 1
            if made == lost:
                quiet.set()

    server = await loop.create_server(Counted, "127.0.0.1", 0, backlog=1_024)
    completed = 0
    async with server:
        host, port = server.sockets[0].getsockname()
        for ticks in range(1_500):
            connecting = loop.create_task(loop.create_connection(Counted, host, port))
            for _ in range(ticks % 8):
                await asyncio.sleep(0)
            connecting.cancel()
            await asyncio.wait([connecting])
            if not connecting.cancelled():
                connecting.result()[0].abort()
                completed += 1
        # One connection more: what the kernel had accepted of the others is ahead of it in the queue.
        transport, _ = await loop.create_connection(Counted, host, port)
        transport.abort()
        await asyncio.sleep(0.05)
        await asyncio.wait_for(quiet.wait(), 20)
    assert made == lost
    assert completed < 1_500


def count_futures() -> int:
    """Those of all tests before as well, as far as something keeps them."""
    return sum(isinstance(kept, asyncio.Future) for kept in gc.get_objects())


async def test_cancelled_waits_on_a_silent_socket_hold_nothing() -> None:
    """Waits with a time limit, again and again on sockets where nothing happens: no future of them stays."""
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()
    with left, right, socket.create_server(("127.0.0.1", 0)) as listener:
        for sock in (left, right, listener):
            sock.setblocking(False)
        while True:
            try:
                right.send(bytes(65_536))
            except BlockingIOError:
                break
        buffer = bytearray(10)
        gc.collect()
        before = count_futures()
        for _ in range(500):
            waits: list[Callable[[], Awaitable[object]]] = [
                partial(loop.sock_recv, right, 10),
                partial(loop.sock_recv_into, right, buffer),
                partial(loop.sock_recvfrom, right, 10),
                partial(loop.sock_accept, listener),
                partial(loop.sock_sendall, right, b"no room"),
            ]
            for wait in waits:
                task = asyncio.ensure_future(wait())
                await asyncio.sleep(0)
                task.cancel()
                assert isinstance(
                    (await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError
                )
        gc.collect()
        assert count_futures() - before < 50
