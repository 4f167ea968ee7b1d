"""getaddrinfo and getnameinfo; numeric hosts never go to a thread."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from .support import Peer, connected, ended, listener, serving


@pytest.fixture
def no_thread(loop):
    """Whatever the test does on `loop`, it may not use the default executor."""
    before = threading.active_count()
    yield
    assert loop._default_executor is None
    assert threading.active_count() == before


async def test_getaddrinfo_resolves_a_name(loop):
    infos = await loop.getaddrinfo("localhost", 80, family=socket.AF_INET, type=socket.SOCK_STREAM)
    assert (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80)) in infos


async def test_getaddrinfo_is_what_socket_gives(loop):
    for host, port, options in (
        ("127.0.0.1", 80, {}),
        ("127.0.0.1", "80", {"type": socket.SOCK_DGRAM}),
        ("::1", 443, {"type": socket.SOCK_STREAM}),
        ("localhost", "http", {"proto": socket.IPPROTO_TCP}),
        (None, 80, {"type": socket.SOCK_STREAM, "flags": socket.AI_PASSIVE}),
        (b"127.0.0.1", 80, {"type": socket.SOCK_STREAM}),
        ("localhost", None, {}),
        ("", 80, {"type": socket.SOCK_STREAM}),
    ):
        try:
            expected = socket.getaddrinfo(host, port, **options)
        except socket.gaierror:
            with pytest.raises(socket.gaierror):
                await loop.getaddrinfo(host, port, **options)
        else:
            assert await loop.getaddrinfo(host, port, **options) == expected


async def test_an_unknown_name_raises(loop):
    with pytest.raises(socket.gaierror):
        await loop.getaddrinfo("no-such-host.invalid", 80)


async def test_wrong_arguments_raise(loop):
    with pytest.raises((TypeError, socket.gaierror)):
        await loop.getaddrinfo(7, 80)
    with pytest.raises((OSError, OverflowError)):
        await loop.getaddrinfo("localhost", "no-such-service")
    with pytest.raises(UnicodeError):
        await loop.getaddrinfo("x" * 100 + ".test", 80)


async def test_getnameinfo(loop):
    assert await loop.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV) == (
        "127.0.0.1",
        "80",
    )
    expected = socket.getnameinfo(("127.0.0.1", 80), 0)
    assert await loop.getnameinfo(("127.0.0.1", 80)) == expected


async def test_getnameinfo_refuses_names(loop):
    with pytest.raises((socket.gaierror, OSError)):
        await loop.getnameinfo(("localhost.invalid", 80))


@pytest.mark.usefixtures("no_thread")
async def test_connecting_to_a_numeric_host_uses_no_thread(loop):
    async with serving(Peer) as (host, port):
        transport, client = await loop.create_connection(Peer, host, port)
        await ended(client)
        transport, client = await loop.create_connection(Peer, host, str(port), local_addr=("127.0.0.1", 0))
        await ended(client)
        assert transport.is_closing()


@pytest.mark.usefixtures("no_thread")
async def test_a_pair_of_transports_uses_no_thread(loop):
    async with connected() as (client, peer):
        client.transport.write(b"x")
        await peer.until_received(1)


@pytest.mark.usefixtures("no_thread")
async def test_sock_connect_to_a_numeric_host_uses_no_thread(loop):
    with listener() as server, socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, server.getsockname())


@pytest.mark.usefixtures("no_thread")
async def test_serving_on_numeric_hosts_uses_no_thread(loop):
    server = await loop.create_server(Peer, ["127.0.0.1", "127.0.0.2"], 0)
    server.close()
    await server.wait_closed()


@pytest.mark.usefixtures("no_thread")
async def test_datagrams_to_numeric_hosts_use_no_thread(loop):
    transport, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0), remote_addr=("127.0.0.1", 9)
    )
    transport.close()
    await asyncio.sleep(0)


@pytest.mark.usefixtures("no_thread")
async def test_numeric_ipv6_hosts_use_no_thread(loop):
    with pytest.raises(OSError):  # noqa: PT011
        await loop.create_connection(Peer, "::1", 1)


@pytest.mark.usefixtures("no_thread")
@pytest.mark.asyncio_flawed(True, "getaddrinfo of a numeric host goes to a thread")
async def test_getaddrinfo_of_a_numeric_host_uses_no_thread(loop):
    infos = await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
    assert infos == socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
