"""Datagram endpoints: inet and Unix, connected and not, errors, flow control."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest

from .support import SINCE_312, turns


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self):
        self.transport = None
        self.received = []
        self.errors = []
        self.calls = []
        self.reason = None
        self._changed = asyncio.Event()

    def note(self, call):
        self.calls.append(call)
        self._changed.set()

    def connection_made(self, transport):
        self.transport = transport
        self.note("made")

    def datagram_received(self, data, addr):
        self.received.append((data, addr))
        self.note("data")

    def error_received(self, exc):
        self.errors.append(exc)
        self.note("error")

    def connection_lost(self, exc):
        self.reason = exc
        self.note("lost")

    def pause_writing(self):
        self.note("pause")

    def resume_writing(self):
        self.note("resume")

    async def until(self, condition):
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def until_called(self, call):
        await self.until(lambda: call in self.calls)

    async def end(self):
        if "lost" not in self.calls:
            self.transport.abort()
            await self.until_called("lost")


class EchoDatagrams(Datagrams):
    def datagram_received(self, data, addr):
        super().datagram_received(data, addr)
        self.transport.sendto(data, addr)


async def endpoint(factory=Datagrams, **options):
    return (await asyncio.get_running_loop().create_datagram_endpoint(factory, **options))[1]


def name(protocol):
    return protocol.transport.get_extra_info("sockname")


async def test_unconnected_endpoints_exchange(loop):
    server = await endpoint(EchoDatagrams, local_addr=("127.0.0.1", 0))
    client = await endpoint(local_addr=("127.0.0.1", 0))
    client.transport.sendto(b"hello", name(server))
    await client.until_called("data")
    assert server.received == [(b"hello", name(client))]
    assert client.received == [(b"hello", name(server))]
    await client.end()
    await server.end()
    assert client.calls == ["made", "data", "lost"]
    assert client.reason is None


async def test_a_connected_endpoint_needs_no_address(loop):
    server = await endpoint(EchoDatagrams, local_addr=("127.0.0.1", 0))
    client = await endpoint(remote_addr=name(server))
    assert client.transport.get_extra_info("peername") == name(server)
    client.transport.sendto(b"one")
    client.transport.sendto(b"two", name(server))
    client.transport.sendto(b"three", None)
    await client.until(lambda: len(client.received) == 3)
    assert [data for data, _ in client.received] == [b"one", b"two", b"three"]
    assert {address for _, address in client.received} == {name(server)}
    await client.end()
    await server.end()


async def test_a_connected_endpoint_refuses_another_address(loop):
    server = await endpoint(local_addr=("127.0.0.1", 0))
    client = await endpoint(remote_addr=name(server))
    with pytest.raises(ValueError, match="Invalid address: must be None or"):
        client.transport.sendto(b"x", ("127.0.0.2", 9))
    await client.end()
    await server.end()


async def test_sizes_and_boundaries_are_kept(loop):
    server = await endpoint(local_addr=("127.0.0.1", 0))
    client = await endpoint(remote_addr=name(server))
    sizes = [1, 1000, 60_000, 65_507, 3]
    for size in sizes:
        client.transport.sendto(b"x" * size)
        await server.until(lambda expected=size: server.received and len(server.received[-1][0]) == expected)
    assert [len(data) for data, _ in server.received] == sizes
    await client.end()
    await server.end()


@pytest.mark.asyncio_since((3, 13), "sending of empty datagrams")
async def test_an_empty_datagram_arrives(loop):
    server = await endpoint(local_addr=("127.0.0.1", 0))
    client = await endpoint(remote_addr=name(server))
    client.transport.sendto(b"")
    await server.until_called("data")
    assert server.received == [(b"", name(client))]
    await client.end()
    await server.end()


async def test_what_is_received_is_bytes_and_every_buffer_can_be_sent(loop):
    server = await endpoint(local_addr=("127.0.0.1", 0))
    client = await endpoint(remote_addr=name(server))
    for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview")):
        client.transport.sendto(data)
    await server.until(lambda: len(server.received) == 3)
    assert [data for data, _ in server.received] == [b"bytes", b"bytearray", b"memoryview"]
    assert {type(data) for data, _ in server.received} == {bytes}
    await client.end()
    await server.end()


@pytest.mark.parametrize("wrong", ["text", 7, None])
async def test_sendto_refuses_other_types(loop, wrong):
    client = await endpoint(local_addr=("127.0.0.1", 0))
    with pytest.raises(TypeError, match="data argument must be a bytes-like object"):
        client.transport.sendto(wrong, ("127.0.0.1", 9))
    await client.end()


async def test_a_datagram_too_long_is_an_error_received(loop):
    server = await endpoint(local_addr=("127.0.0.1", 0))
    client = await endpoint(remote_addr=name(server))
    client.transport.sendto(b"x" * 70_000)
    await client.until_called("error")
    assert "too long" in str(client.errors[0])
    client.transport.sendto(b"fits")
    await server.until_called("data")
    await client.end()
    await server.end()


async def test_a_port_nobody_listens_on_is_an_error_received(loop):
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()
    client = await endpoint(remote_addr=address)
    client.transport.sendto(b"anyone?")
    await client.until_called("error")
    assert isinstance(client.errors[0], ConnectionRefusedError)
    assert not client.transport.is_closing()
    await client.end()


async def test_many_datagrams_keep_their_order(loop):
    server = await endpoint(local_addr=("127.0.0.1", 0))
    client = await endpoint(remote_addr=name(server))
    for number in range(300):
        client.transport.sendto(b"%d" % number)
        if number % 20 == 0:
            await server.until(lambda count=number: len(server.received) > count - 20)
    await server.until(lambda: len(server.received) == 300)
    assert [int(data) for data, _ in server.received] == list(range(300))
    await client.end()
    await server.end()


async def test_unix_datagrams(loop, tmp_path):
    path, other = str(tmp_path / "one"), str(tmp_path / "two")
    server = await endpoint(EchoDatagrams, local_addr=path, family=socket.AF_UNIX)
    client = await endpoint(local_addr=other, remote_addr=path, family=socket.AF_UNIX)
    client.transport.sendto(b"hello")
    await client.until_called("data")
    assert server.received == [(b"hello", other)]
    assert client.received == [(b"hello", path)]
    await client.end()
    await server.end()


async def test_a_unix_path_left_behind_is_replaced(loop, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
        stale.bind(path)
    server = await endpoint(local_addr=path, family=socket.AF_UNIX)
    await server.end()


async def test_unix_addresses_must_be_text(loop):
    with pytest.raises(TypeError, match="string is expected"):
        await endpoint(local_addr=7, family=socket.AF_UNIX)


async def test_a_bound_socket_may_be_given(loop):
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    server = await endpoint(sock=sock)
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.sendto(b"hi", name(server))
        await server.until_called("data")
    await server.end()
    assert sock.fileno() == -1


async def test_allow_broadcast_sets_the_option(loop):
    plain = await endpoint(local_addr=("127.0.0.1", 0))
    loud = await endpoint(local_addr=("127.0.0.1", 0), allow_broadcast=True)
    values = [
        each.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
        for each in (plain, loud)
    ]
    assert values == [0, 1]
    await plain.end()
    await loud.end()


async def test_reuse_port_lets_two_endpoints_share(loop):
    one = await endpoint(local_addr=("127.0.0.1", 0), reuse_port=True)
    two = await endpoint(local_addr=name(one), reuse_port=True)
    assert name(one) == name(two)
    await one.end()
    await two.end()


async def test_an_address_in_use_raises(loop):
    one = await endpoint(local_addr=("127.0.0.1", 0))
    with pytest.raises(OSError, match=r"[Aa]ddress already in use"):
        await endpoint(local_addr=name(one))
    await one.end()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "unexpected address family"),
        ({"local_addr": ("127.0.0.1", 0), "remote_addr": ("::1", 1)}, "can not get address information"),
        ({"local_addr": "127.0.0.1"}, "2-tuple is expected"),
        ({"remote_addr": ("127.0.0.1",)}, "2-tuple is expected"),
    ],
)
async def test_endpoints_that_make_no_sense_are_refused(loop, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        await endpoint(**options)


async def test_a_stream_socket_is_refused(loop):
    with socket.socket() as sock, pytest.raises(ValueError, match=r"A (UDP|datagram) [Ss]ocket was expected"):
        await endpoint(sock=sock)


async def test_a_socket_and_options_are_refused(loop):
    refused = pytest.raises(ValueError, match="can not be used when sock is specified")
    with socket.socket(type=socket.SOCK_DGRAM) as sock, refused:
        await endpoint(sock=sock, local_addr=("127.0.0.1", 0))


async def test_close_sends_nothing_more_and_loses_once(loop):
    client = await endpoint(local_addr=("127.0.0.1", 0))
    client.transport.close()
    client.transport.close()
    assert client.transport.is_closing()
    assert client.calls == ["made"]
    await client.until_called("lost")
    await turns()
    assert client.calls == ["made", "lost"]


async def to_unread(path):
    """An endpoint and the bare socket that it sends to; the kernel holds some ten datagrams between them."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    sock.setblocking(False)
    return await endpoint(remote_addr=str(path), family=socket.AF_UNIX), sock


async def test_the_writer_is_paused_when_the_peer_does_not_read(loop, tmp_path):
    client, sock = await to_unread(tmp_path / "socket")
    client.transport.set_write_buffer_limits(high=3000, low=1000)
    sent = 0
    while "pause" not in client.calls:
        client.transport.sendto(b"x" * 1000)
        sent += 1
        assert sent < 1000
    assert client.transport.get_write_buffer_size() > 3000
    for _ in range(sent):
        assert await loop.sock_recv(sock, 2000) == b"x" * 1000
    assert client.calls == ["made", "pause", "resume"]
    assert client.transport.get_write_buffer_size() <= 1000
    await client.end()
    sock.close()


async def test_close_sends_what_is_queued(loop, tmp_path):
    client, sock = await to_unread(tmp_path / "socket")
    count = 0
    while client.transport.get_write_buffer_size() < 50_000:
        client.transport.sendto(b"%04d" % count + b"x" * 996)
        count += 1
    client.transport.close()
    client.transport.sendto(b"late")
    for number in range(count):
        assert int((await loop.sock_recv(sock, 2000))[:4]) == number
    await client.until_called("lost")
    assert client.reason is None
    sock.close()


async def test_abort_drops_what_is_queued(loop, tmp_path):
    client, sock = await to_unread(tmp_path / "socket")
    while client.transport.get_write_buffer_size() < 50_000:
        client.transport.sendto(b"x" * 1000)
    client.transport.abort()
    await client.until_called("lost")
    assert client.reason is None
    received = 0
    with contextlib.suppress(BlockingIOError):
        while sock.recv(2000):
            received += 1
    assert received < 50
    sock.close()


async def test_a_failing_datagram_received_is_reported_and_survived(loop, loop_errors):
    class Failing(Datagrams):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if len(self.received) == 1:
                raise LookupError("in datagram_received")

    server = await endpoint(Failing, local_addr=("127.0.0.1", 0))
    client = await endpoint(remote_addr=name(server))
    client.transport.sendto(b"one")
    client.transport.sendto(b"two")
    await server.until(lambda: len(server.received) == 2)
    assert [type(context["exception"]) for context in loop_errors] == [LookupError]
    loop_errors.clear()
    await client.end()
    await server.end()


@pytest.mark.asyncio_flawed(not SINCE_312, "a datagram transport was no DatagramTransport before Python 3.12")
async def test_endpoints_are_datagram_transports(loop):
    client = await endpoint(local_addr=("127.0.0.1", 0))
    assert isinstance(client.transport, asyncio.DatagramTransport)
    await client.end()


async def test_a_real_socket_is_seen(loop):
    client = await endpoint(local_addr=("127.0.0.1", 0))
    sock = client.transport.get_extra_info("socket")
    assert sock.type == socket.SOCK_DGRAM
    assert sock.getsockname() == name(client)
    assert client.transport.get_extra_info("peername") is None
    assert os.fstat(sock.fileno())
    await client.end()
