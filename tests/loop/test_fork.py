"""After fork: the child makes its own loops, the parent is undisturbed, no descriptor is shared."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys

import pytest

# Each program runs in a fresh interpreter: forking pytest itself would fork its plugins and threads too.
PRELUDE = """
import asyncio, gc, os, signal, socket, sys, unwait
make = {"unwait": unwait.Loop, "asyncio": asyncio.SelectorEventLoop}[sys.argv[1]]

def child(function):
    pid = os.fork()
    if pid:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, status
        return
    signal.alarm(20)
    code = 1
    try:
        function()
        code = 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        os._exit(code)

async def echo_once():
    async def handle(reader, writer):
        writer.write(await reader.readexactly(4))
        await writer.drain()
        writer.close()
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"echo")
    assert await reader.readexactly(4) == b"echo"
    writer.close()
    server.close()
    await asyncio.sleep(0.01)
"""


@pytest.fixture
def program(loop_kind):
    """Runs a program in a fresh interpreter; it must end well and write nothing to stderr."""

    def run(body):
        result = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + body, loop_kind],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.stderr == ""
        assert result.returncode == 0
        return result.stdout

    return run


def test_the_child_makes_a_new_loop(program):
    program("""
loop = make()
loop.run_until_complete(echo_once())

def fresh():
    new = make()
    new.run_until_complete(echo_once())
    new.close()

child(fresh)
loop.run_until_complete(echo_once())
loop.close()
""")


def test_the_child_of_a_running_loop_makes_a_new_loop(program):
    program("""
async def main():
    def fresh():
        assert asyncio._get_running_loop() is None
        new = make()
        new.run_until_complete(echo_once())
        new.close()
    child(fresh)
    await echo_once()

loop = make()
loop.run_until_complete(main())
loop.close()
""")


def test_the_child_closing_the_parents_loop_leaves_the_parent_alone(program):
    program("""
one, two = socket.socketpair()
one.setblocking(False)
received = []
loop = make()
loop.add_reader(one, lambda: received.append(one.recv(10)))
loop.call_later(30, print, "never")

child(loop.close)

two.send(b"x")
async def wait():
    while not received:
        await asyncio.sleep(0.001)
loop.run_until_complete(asyncio.wait_for(wait(), 10))
assert received == [b"x"]
loop.run_until_complete(echo_once())
loop.remove_reader(one)
loop.close()
one.close()
two.close()
""")


@pytest.mark.asyncio_flawed(True, "the child of a fork shares the parent's epoll instance")
def test_the_child_using_the_parents_loop_fails_cleanly_or_starts_afresh(program):
    program("""
one, two = socket.socketpair()
one.setblocking(False)
received = []
loop = make()
loop.add_reader(one, lambda: received.append(one.recv(10)))
loop.run_until_complete(asyncio.sleep(0))

def use():
    try:
        loop.run_until_complete(echo_once())
    except RuntimeError as exc:
        assert str(exc), exc

child(use)

two.send(b"x")
async def wait():
    while not received:
        await asyncio.sleep(0.001)
loop.run_until_complete(asyncio.wait_for(wait(), 10))
assert received == [b"x"]
loop.run_until_complete(echo_once())
loop.remove_reader(one)
loop.close()
one.close()
two.close()
""")


@pytest.mark.asyncio_flawed(
    True, "a descriptor that the child removes is removed from the parent's epoll instance"
)
def test_the_child_removing_a_reader_leaves_the_parents(program):
    program("""
one, two = socket.socketpair()
one.setblocking(False)
received = []
loop = make()
loop.add_reader(one, lambda: received.append(one.recv(10)))

def remove():
    try:
        loop.remove_reader(one)
    except RuntimeError as exc:
        assert str(exc), exc

child(remove)
two.send(b"x")
async def wait():
    while not received:
        await asyncio.sleep(0.001)
loop.run_until_complete(asyncio.wait_for(wait(), 10))
loop.remove_reader(one)
loop.close()
one.close()
two.close()
""")


def test_the_parent_goes_on_after_many_forks(program):
    program("""
async def main():
    for _ in range(10):
        child(lambda: None)
        await echo_once()

loop = make()
loop.run_until_complete(main())
loop.close()
""")


def test_multiprocessing_children_run_loops(program):
    assert (
        program("""
import multiprocessing

async def answer():
    await asyncio.sleep(0.001)
    return os.getpid()

def work(queue):
    with asyncio.Runner(loop_factory=make) as runner:
        queue.put(runner.run(answer()))

context = multiprocessing.get_context("fork")
queue = context.SimpleQueue()
workers = [context.Process(target=work, args=(queue,)) for _ in range(3)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
    assert worker.exitcode == 0
print(len({queue.get() for _ in workers}))
""")
        == "3\n"
    )


async def test_every_descriptor_is_close_on_exec(loop):
    before = set(os.listdir("/proc/self/fd"))
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    loop.add_reader(ours, print)
    opened = {
        int(fd) for fd in set(os.listdir("/proc/self/fd")) - before if os.path.exists(f"/proc/self/fd/{fd}")
    }
    assert len(opened) >= 4
    assert [fd for fd in opened if os.get_inheritable(fd)] == []
    loop.remove_reader(ours)
    ours.close()
    theirs.close()
    transport.abort()
    server.close()
    await server.wait_closed()


def test_the_loops_own_descriptors_are_close_on_exec(loop_factory):
    before = set(os.listdir("/proc/self/fd"))
    loop_factory()
    opened = [
        int(fd) for fd in set(os.listdir("/proc/self/fd")) - before if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert opened
    assert [fd for fd in opened if os.get_inheritable(fd)] == []
