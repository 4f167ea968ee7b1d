"""add_reader and add_writer: numbers and objects, replacing, removing, numbers used again."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from .support import turns


@pytest.fixture
def pair():
    one, two = socket.socketpair()
    one.setblocking(False)
    two.setblocking(False)
    yield one, two
    one.close()
    two.close()


async def until(condition):
    while not condition():
        await turns(1)


@pytest.mark.parametrize(
    "as_given", [lambda sock: sock, lambda sock: sock.fileno()], ids=["object", "number"]
)
async def test_a_reader_is_called_when_there_is_data(loop, pair, as_given):
    one, two = pair
    received = []
    loop.add_reader(as_given(one), lambda: received.append(one.recv(100)))
    await turns()
    assert received == []
    two.send(b"data")
    await until(lambda: received)
    assert received == [b"data"]
    assert loop.remove_reader(as_given(one)) is True


async def test_a_writer_is_called_while_there_is_room(loop, pair):
    one, _ = pair
    calls = []
    loop.add_writer(one, calls.append, "writable")
    await until(lambda: len(calls) > 2)
    assert set(calls) == {"writable"}
    assert loop.remove_writer(one) is True
    calls.clear()
    await turns()
    assert calls == []


async def test_a_reader_is_called_again_as_long_as_data_is_left(loop, pair):
    one, two = pair
    received = []
    loop.add_reader(one, lambda: received.append(one.recv(1)))
    two.send(b"abc")
    await until(lambda: len(received) == 3)
    loop.remove_reader(one)
    assert received == [b"a", b"b", b"c"]


async def test_reader_and_writer_on_one_descriptor(loop, pair):
    one, two = pair
    calls = []
    loop.add_reader(one, lambda: calls.append(one.recv(10)))
    loop.add_writer(one, calls.append, "writable")
    await until(lambda: "writable" in calls)
    assert loop.remove_writer(one)
    calls.clear()
    two.send(b"x")
    await until(lambda: calls)
    assert calls == [b"x"]
    assert loop.remove_reader(one)


async def test_adding_again_replaces(loop, pair):
    one, two = pair
    calls = []
    loop.add_reader(one, calls.append, "first")
    loop.add_reader(one, lambda: (calls.append("second"), one.recv(10)))
    two.send(b"x")
    await until(lambda: calls)
    assert calls == ["second"]
    loop.remove_reader(one)


async def test_replacing_or_removing_takes_back_a_call_already_due(loop, pair):
    one, two = pair
    calls = []
    two.send(b"x")
    loop.add_reader(one, calls.append, "removed")
    loop.remove_reader(one)
    await turns()
    loop.add_writer(one, calls.append, "replaced")
    loop.add_writer(one, lambda: (calls.append("kept"), loop.remove_writer(one)))
    await until(lambda: calls)
    assert calls == ["kept"]


async def test_removing_what_is_not_there_returns_false(loop, pair):
    one, _ = pair
    assert loop.remove_reader(one) is False
    assert loop.remove_writer(one) is False
    loop.add_reader(one, print)
    assert loop.remove_writer(one) is False
    assert loop.remove_reader(one) is True
    assert loop.remove_reader(one) is False


async def test_a_reader_that_removes_itself_is_called_once(loop, pair):
    one, two = pair
    calls = []
    loop.add_reader(one, lambda: (calls.append(1), loop.remove_reader(one)))
    two.send(b"x")
    await until(lambda: calls)
    await asyncio.sleep(0.005)
    assert calls == [1]


async def test_a_reader_that_removes_another(loop):
    pairs = [socket.socketpair() for _ in range(2)]
    calls = []

    def only(number):
        calls.append(number)
        for one, _ in pairs:
            loop.remove_reader(one)

    for number, (one, two) in enumerate(pairs):
        loop.add_reader(one, only, number)
        two.send(b"x")
    await until(lambda: calls)
    await asyncio.sleep(0.005)
    assert len(calls) == 1
    for sock in (sock for each in pairs for sock in each):
        sock.close()


async def test_a_failing_reader_is_reported_and_stays(loop, pair, loop_errors):
    one, two = pair
    calls = []

    def fail():
        calls.append(one.recv(10))
        raise LookupError

    loop.add_reader(one, fail)
    two.send(b"a")
    await until(lambda: len(calls) == 1)
    two.send(b"b")
    await until(lambda: len(calls) == 2)
    await turns(1)
    loop.remove_reader(one)
    assert [type(context["exception"]) for context in loop_errors] == [LookupError] * 2
    loop_errors.clear()


async def test_the_end_wakes_a_reader(loop, pair):
    one, two = pair
    received = []
    loop.add_reader(one, lambda: (received.append(one.recv(10)), loop.remove_reader(one)))
    two.close()
    await until(lambda: received)
    assert received == [b""]


async def test_an_error_wakes_the_writer(loop):
    reading, writing = os.pipe()
    calls = []
    os.close(reading)
    loop.add_writer(writing, lambda: (calls.append(1), loop.remove_writer(writing)))
    await until(lambda: calls)
    os.close(writing)


async def test_pipes_work_too(loop):
    reading, writing = os.pipe()
    received = []
    loop.add_reader(reading, lambda: received.append(os.read(reading, 10)))
    os.write(writing, b"x")
    await until(lambda: received)
    loop.remove_reader(reading)
    os.close(reading)
    os.close(writing)
    assert received == [b"x"]


async def test_a_number_used_again_belongs_to_the_new_socket_only(loop):
    calls = []
    for round_number in range(50):
        one, two = socket.socketpair()
        number = one.fileno()
        loop.add_reader(one, calls.append, ("old", round_number))
        loop.remove_reader(one)
        one.close()
        two.close()
        one, two = socket.socketpair()
        assert number in (one.fileno(), two.fileno())
        fresh, other = (one, two) if one.fileno() == number else (two, one)
        loop.add_reader(fresh, lambda f=fresh, n=round_number: calls.append(("new", n, f.recv(1))))
        other.send(b"x")
        await until(lambda: calls)
        assert calls == [("new", round_number, b"x")]
        calls.clear()
        loop.remove_reader(fresh)
        fresh.close()
        other.close()


async def test_a_descriptor_closed_while_watched_does_not_disturb_the_loop(loop, pair):
    one, two = pair
    calls = []
    gone, other = socket.socketpair()
    number = gone.fileno()
    loop.add_reader(gone, calls.append, "gone")
    gone.close()
    other.close()
    loop.add_reader(one, lambda: calls.append(one.recv(10)))
    two.send(b"x")
    await until(lambda: calls)
    assert calls == [b"x"]
    loop.remove_reader(one)
    loop.remove_reader(number)


@pytest.mark.asyncio_flawed(True, "takes the new descriptor for the old one, and never hears of it")
async def test_adding_under_a_number_that_was_closed_while_watched(loop):
    calls = []
    gone, other = socket.socketpair()
    number = gone.fileno()
    loop.add_reader(gone, calls.append, "gone")
    gone.close()
    one, two = socket.socketpair()
    assert one.fileno() == number
    loop.add_reader(one, lambda: calls.append(one.recv(10)))
    two.send(b"x")
    await until(lambda: calls)
    assert calls == [b"x"]
    loop.remove_reader(one)
    for sock in (other, one, two):
        sock.close()


@pytest.mark.parametrize("wrong", ["text", None, 1.5, object(), -1])
def test_what_is_no_descriptor_is_refused(loop, wrong):
    for use in (loop.add_reader, loop.add_writer):
        with pytest.raises(ValueError, match="Invalid file"):
            use(wrong, print)
    for use in (loop.remove_reader, loop.remove_writer):
        with pytest.raises(ValueError, match="Invalid file"):
            use(wrong)


def test_a_number_that_is_not_open_is_refused(loop):
    number = os.dup(0)
    os.close(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.add_reader(number, print)
    assert loop.remove_reader(number) is False


def test_a_plain_file_cannot_be_watched(loop, tmp_path):
    with (tmp_path / "file").open("w") as file, pytest.raises(PermissionError):
        loop.add_reader(file, print)


def test_readers_left_behind_are_forgotten_on_close(loop, pair):
    one, _ = pair
    loop.add_reader(one, print)
    loop.close()
    assert one.fileno() >= 0
