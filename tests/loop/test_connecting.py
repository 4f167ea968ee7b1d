"""create_connection, create_server, connect_accepted_socket: every option, and the Server object."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

import pytest

from .support import SINCE_312, Echo, Peer, connected, ended, listener, serving, turns


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


async def connect(*args, **options):
    return (await asyncio.get_running_loop().create_connection(Peer, *args, **options))[1]


def server_factory(peers):
    def factory():
        peers.append(Peer())
        return peers[-1]

    return factory


# create_connection


async def test_create_connection_returns_transport_and_protocol(loop):
    async with serving(Echo) as address:
        transport, protocol = await loop.create_connection(Peer, *address)
        assert protocol.transport is transport
        assert transport.get_protocol() is protocol
        assert protocol.calls == ["made"]
        await ended(protocol)


async def test_connecting_by_name(loop):
    async with serving(Echo) as (_, port):
        client = await connect("localhost", port, family=socket.AF_INET)
        client.transport.write(b"hi")
        await client.until_received(2)
        await ended(client)


async def test_the_port_may_be_text(loop):
    async with serving(Echo) as (host, port):
        await ended(await connect(host, str(port)))


async def test_a_refused_connection_raises(loop):
    port = unused_port()
    with pytest.raises(ConnectionRefusedError) as caught:
        await connect("127.0.0.1", port)
    assert caught.value.errno == errno.ECONNREFUSED
    assert "127.0.0.1" in str(caught.value)
    assert str(port) in str(caught.value)


async def test_a_name_that_does_not_resolve_raises(loop):
    with pytest.raises(socket.gaierror):
        await connect("no-such-host.invalid", 80)


async def test_several_failures_are_told_together(loop):
    port = unused_port()

    async def two(*_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (1, 2)]

    loop.getaddrinfo = two
    with pytest.raises(OSError, match="Multiple exceptions: ") as caught:
        await connect("two.test", port)
    assert str(caught.value).count("Connect call failed") == 2


@pytest.mark.asyncio_since((3, 12), "all_errors")
async def test_all_errors_raises_a_group(loop):
    port = unused_port()
    with pytest.raises(ExceptionGroup) as caught:
        await connect("127.0.0.1", port, all_errors=True)
    assert [type(each) for each in caught.value.exceptions] == [ConnectionRefusedError]


async def test_the_next_address_is_tried(loop):
    async with serving(Echo) as (_, port):

        async def two(*_, **__):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (2, 1)]

        loop.getaddrinfo = two
        client = await connect("two.test", port)
        assert client.transport.get_extra_info("peername") == ("127.0.0.1", port)
        await ended(client)


async def test_happy_eyeballs_takes_the_address_that_answers(loop):
    blocked = listener(backlog=0)
    fillers = []
    for _ in range(3):  # more than its backlog: the next connection attempt gets no answer
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(blocked.getsockname())
        fillers.append(filler)
    good = listener()
    addresses = [blocked.getsockname(), good.getsockname()]

    async def two(*_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    loop.getaddrinfo = two
    client = await connect("two.test", 1, happy_eyeballs_delay=0.02)
    assert client.transport.get_extra_info("peername") == addresses[1]
    await ended(client)
    for sock in (blocked, good, *fillers):
        sock.close()


async def test_happy_eyeballs_with_only_failures_raises(loop):
    port = unused_port()

    async def two(*_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (1, 2)]

    loop.getaddrinfo = two
    with pytest.raises(OSError, match=r"Multiple exceptions|Connect call failed"):
        await connect("two.test", port, happy_eyeballs_delay=0.01)


async def test_interleave_alternates_families(loop):
    tried = []
    v6 = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (f"::{n}", 1, 0, 0)) for n in (2, 3)]
    v4 = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", 1)) for n in (1, 2)]

    async def four(*_, **__):
        return v6 + v4

    async def fail(sock, address):
        tried.append(sock.family)
        raise OSError(errno.ECONNREFUSED, "refused")

    loop.getaddrinfo = four
    loop.sock_connect = fail
    with pytest.raises(OSError, match="refused"):
        await connect("four.test", 1, interleave=1)
    assert tried == [socket.AF_INET6, socket.AF_INET] * 2


async def test_local_addr_binds_the_near_end(loop):
    port = unused_port()
    async with serving(Echo) as address:
        client = await connect(*address, local_addr=("127.0.0.1", port))
        assert client.transport.get_extra_info("sockname") == ("127.0.0.1", port)
        await ended(client)


async def test_a_local_addr_in_use_raises(loop):
    async with serving(Echo) as address:
        with pytest.raises(OSError, match="error while attempting to bind on address") as caught:
            await connect(*address, local_addr=address)
        assert caught.value.errno == errno.EADDRINUSE


async def test_create_connection_takes_a_connected_socket(loop):
    ours, theirs = socket.socketpair()
    client = await connect(sock=ours)
    client.transport.write(b"hi")
    assert theirs.recv(10) == b"hi"
    client.transport.close()
    await client.until_called("lost")
    assert ours.fileno() == -1
    assert theirs.recv(10) == b""
    theirs.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"host": "127.0.0.1", "port": 1, "sock": True},
            "host/port and sock can not be specified at the same time",
        ),
        ({}, "host and port was not specified and no sock specified"),
        ({"host": "h", "port": 1, "server_hostname": "h"}, "server_hostname is only meaningful with ssl"),
        (
            {"port": 1, "host": None, "ssl": True},
            "You must set server_hostname when using ssl without a host",
        ),
        (
            {"host": "h", "port": 1, "ssl_handshake_timeout": 1},
            "ssl_handshake_timeout is only meaningful with ssl",
        ),
        (
            {"host": "h", "port": 1, "ssl_shutdown_timeout": 1},
            "ssl_shutdown_timeout is only meaningful with ssl",
        ),
    ],
)
async def test_create_connection_refuses_what_makes_no_sense(loop, options, message):
    if options.get("sock"):
        options = {**options, "sock": socket.socket()}
    with pytest.raises(ValueError, match=message):
        await loop.create_connection(Peer, **options)
    if "sock" in options:
        options["sock"].close()


async def test_create_connection_refuses_a_datagram_socket(loop):
    with (
        socket.socket(type=socket.SOCK_DGRAM) as sock,
        pytest.raises(ValueError, match="A Stream Socket was expected"),
    ):
        await connect(sock=sock)


async def test_a_cancelled_connect_leaves_nothing(loop):
    full = listener(backlog=0)
    fillers = [socket.socket() for _ in range(3)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
    task = loop.create_task(connect(*full.getsockname()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for sock in (full, *fillers):
        sock.close()


@pytest.mark.asyncio_flawed(True, "leaves the socket open when the protocol factory raises")
async def test_a_failing_protocol_factory_raises(loop):
    def failing():
        raise LookupError("in the factory")

    async with serving(Echo) as address:
        with pytest.raises(LookupError, match="in the factory"):
            await loop.create_connection(failing, *address)


async def test_ipv6(loop):
    try:
        server = await loop.create_server(Echo, "::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    address = server.sockets[0].getsockname()
    client = await connect(*address[:2])
    assert client.transport.get_extra_info("peername")[:2] == address[:2]
    await ended(client)
    server.close()
    await server.wait_closed()


# create_server and the Server


async def test_a_server_knows_its_sockets(loop):
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    assert isinstance(server, asyncio.AbstractServer)
    (sock,) = server.sockets
    assert sock.getsockname()[0] == "127.0.0.1"
    assert not hasattr(sock, "accept")
    assert server.is_serving()
    assert server.get_loop() is loop
    server.close()
    assert not server.is_serving()
    assert server.sockets == ()
    await server.wait_closed()


async def test_several_hosts_are_served(loop):
    server = await loop.create_server(Echo, ["127.0.0.1", "127.0.0.2"], 0)
    assert sorted(sock.getsockname()[0] for sock in server.sockets) == ["127.0.0.1", "127.0.0.2"]
    for sock in server.sockets:
        client = await connect(*sock.getsockname())
        client.transport.write(b"hi")
        await client.until_received(2)
        await ended(client)
    server.close()
    await server.wait_closed()


async def test_start_serving_may_be_put_off(loop):
    server = await loop.create_server(Echo, "127.0.0.1", 0, start_serving=False)
    assert not server.is_serving()
    address = server.sockets[0].getsockname()
    with pytest.raises(ConnectionRefusedError):
        await connect(*address)
    await server.start_serving()
    await server.start_serving()
    assert server.is_serving()
    await ended(await connect(*address))
    server.close()
    await server.wait_closed()


async def test_a_listening_socket_may_be_given(loop):
    sock = listener()
    server = await loop.create_server(Echo, sock=sock)
    client = await connect(*sock.getsockname())
    client.transport.write(b"hi")
    await client.until_received(2)
    await ended(client)
    server.close()
    await server.wait_closed()
    assert sock.fileno() == -1


async def test_reuse_port_lets_two_servers_share(loop):
    first = await loop.create_server(Echo, "127.0.0.1", 0, reuse_port=True)
    address = first.sockets[0].getsockname()
    second = await loop.create_server(Echo, *address, reuse_port=True)
    assert second.sockets[0].getsockname() == address
    for _ in range(10):
        client = await connect(*address)
        client.transport.write(b"hi")
        await client.until_received(2)
        await ended(client)
    for server in (first, second):
        server.close()
        await server.wait_closed()


async def test_reuse_address_is_the_default_and_may_be_turned_off(loop):
    for given, expected in ((None, 1), (True, 1), (False, 0)):
        server = await loop.create_server(Echo, "127.0.0.1", 0, reuse_address=given)
        assert server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == expected
        server.close()
        await server.wait_closed()


@pytest.mark.asyncio_since((3, 13, 4), "keep_alive")
async def test_keep_alive_is_set_on_the_listener(loop):
    for given, expected in ((None, 0), (True, 1), (False, 0)):
        server = await loop.create_server(Echo, "127.0.0.1", 0, keep_alive=given)
        assert server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == expected
        server.close()
        await server.wait_closed()


async def test_an_address_in_use_raises(loop):
    async with serving(Echo) as address:
        with pytest.raises(OSError, match="error while attempting to bind on address") as caught:
            await loop.create_server(Echo, *address)
        assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"host": "127.0.0.1", "port": 1, "sock": True},
            "host/port and sock can not be specified at the same time",
        ),
        ({}, "Neither host/port nor sock were specified"),
        (
            {"host": "h", "port": 1, "ssl_handshake_timeout": 1},
            "ssl_handshake_timeout is only meaningful with ssl",
        ),
        (
            {"host": "h", "port": 1, "ssl_shutdown_timeout": 1},
            "ssl_shutdown_timeout is only meaningful with ssl",
        ),
    ],
)
async def test_create_server_refuses_what_makes_no_sense(loop, options, message):
    if options.get("sock"):
        options = {**options, "sock": socket.socket()}
    with pytest.raises(ValueError, match=message):
        await loop.create_server(Peer, **options)
    if "sock" in options:
        options["sock"].close()


async def test_create_server_refuses_ssl_that_is_no_context(loop):
    with pytest.raises(TypeError, match="ssl argument must be an SSLContext or None"):
        await loop.create_server(Peer, "127.0.0.1", 0, ssl=True)


async def test_create_server_refuses_a_datagram_socket(loop):
    with (
        socket.socket(type=socket.SOCK_DGRAM) as sock,
        pytest.raises(ValueError, match="A Stream Socket was expected"),
    ):
        await loop.create_server(Peer, sock=sock)


async def test_many_connections_at_once(loop):
    async with serving(Echo, backlog=256) as address:
        clients = await asyncio.gather(*(connect(*address) for _ in range(200)))
        for number, client in enumerate(clients):
            client.transport.write(b"%d" % number)
        for number, client in enumerate(clients):
            await client.until_received(len(str(number)))
            assert client.data == b"%d" % number
        for client in clients:
            await ended(client)


async def test_serve_forever_ends_by_cancellation_and_closes(loop):
    server = await loop.create_server(Echo, "127.0.0.1", 0, start_serving=False)
    task = loop.create_task(server.serve_forever())
    await turns(3)
    assert server.is_serving()
    with pytest.raises(RuntimeError, match="is already being awaited on serve_forever"):
        await server.serve_forever()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not server.is_serving()
    assert server.sockets == ()


async def test_closing_the_server_ends_serve_forever(loop):
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    task = loop.create_task(server.serve_forever())
    await turns(3)
    server.close()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_serve_forever_on_a_closed_server_is_refused(loop):
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    server.close()
    with pytest.raises(RuntimeError, match="is closed"):
        await server.serve_forever()


async def test_a_server_is_an_async_context(loop):
    async with await loop.create_server(Echo, "127.0.0.1", 0) as server:
        assert server.is_serving()
    assert not server.is_serving()


async def test_closing_a_server_keeps_its_connections(loop):
    async with connected(server_factory=Echo) as (client, _):  # its server is closed already
        client.transport.write(b"still")
        await client.until_received(5)


async def test_wait_closed_waits_for_the_last_connection_since_312(loop):
    peers = []
    server = await loop.create_server(server_factory(peers), "127.0.0.1", 0)
    client = await connect(*server.sockets[0].getsockname())
    await turns(10)
    server.close()
    waiting = loop.create_task(server.wait_closed())
    await asyncio.sleep(0.01)
    assert waiting.done() is not SINCE_312
    await ended(client)
    await asyncio.wait_for(waiting, 5)
    await peers[0].until_called("lost")
    assert peers[0].calls[-1] == "lost"


async def test_wait_closed_of_a_server_without_connections(loop):
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    server.close()
    await asyncio.wait_for(server.wait_closed(), 5)
    await asyncio.wait_for(server.wait_closed(), 5)


@pytest.mark.asyncio_since((3, 13), "Server.close_clients")
async def test_close_clients_sends_what_is_queued_and_closes(loop):
    peers = []
    server = await loop.create_server(server_factory(peers), "127.0.0.1", 0)
    client = await connect(*server.sockets[0].getsockname())
    await client.until(lambda: bool(peers and peers[0].calls))
    peers[0].transport.write(b"x" * 4_000_000)
    server.close()
    server.close_clients()
    await client.until_called("lost")
    assert len(client.data) == 4_000_000
    await asyncio.wait_for(server.wait_closed(), 5)


@pytest.mark.asyncio_since((3, 13), "Server.abort_clients")
async def test_abort_clients_drops_what_is_queued(loop):
    peers = []
    server = await loop.create_server(server_factory(peers), "127.0.0.1", 0)
    client = await connect(*server.sockets[0].getsockname())
    client.transport.pause_reading()
    while not (peers and peers[0].calls):
        await asyncio.sleep(0)
    peers[0].transport.write(b"x" * 16_000_000)
    server.close()
    server.abort_clients()
    await asyncio.wait_for(server.wait_closed(), 5)
    await peers[0].until_called("lost")
    client.transport.resume_reading()
    await client.until_called("lost")
    assert len(client.data) < 16_000_000


@pytest.mark.asyncio_flawed(True, "leaves the accepted socket open when the protocol factory raises")
async def test_a_failing_factory_costs_one_connection(loop, loop_errors):
    made = []

    def factory():
        made.append(1)
        if len(made) == 1:
            raise LookupError("in the factory")
        return Echo()

    async with serving(factory) as address:
        first = await connect(*address)
        await first.until_called("lost")
        second = await connect(*address)
        second.transport.write(b"hi")
        await second.until_received(2)
        await ended(second)
    assert {type(context["exception"]) for context in loop_errors} <= {LookupError}
    loop_errors.clear()


async def test_connections_waiting_to_be_accepted_when_the_server_closes_are_dropped(loop):
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    sock = socket.socket()
    sock.connect(server.sockets[0].getsockname())
    server.close()
    await server.wait_closed()
    sock.setblocking(False)
    with contextlib.suppress(ConnectionResetError):  # it depends on how far the kernel had got with it
        assert await loop.sock_recv(sock, 1) == b""
    sock.close()


# connect_accepted_socket


async def test_connect_accepted_socket(loop):
    listening = listener()
    client = socket.socket()
    client.connect(listening.getsockname())
    accepted, _ = listening.accept()
    accepted.setblocking(False)
    transport, protocol = await loop.connect_accepted_socket(Echo, accepted)
    assert protocol.transport is transport
    client.sendall(b"hi")
    client.setblocking(False)
    assert await loop.sock_recv(client, 10) == b"hi"
    client.close()
    await protocol.until_called("lost")
    listening.close()


async def test_connect_accepted_socket_refuses_a_datagram_socket(loop):
    with (
        socket.socket(type=socket.SOCK_DGRAM) as sock,
        pytest.raises(ValueError, match="A Stream Socket was expected"),
    ):
        await loop.connect_accepted_socket(Peer, sock)


async def test_connect_accepted_socket_refuses_timeouts_without_ssl(loop):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(ValueError, match="ssl_handshake_timeout is only meaningful with ssl"):
            await loop.connect_accepted_socket(Peer, ours, ssl_handshake_timeout=1)
        with pytest.raises(ValueError, match="ssl_shutdown_timeout is only meaningful with ssl"):
            await loop.connect_accepted_socket(Peer, ours, ssl_shutdown_timeout=1)


async def test_one_socket_cannot_have_two_transports_watching_it(loop):
    ours, theirs = socket.socketpair()
    client = await connect(sock=ours)
    with pytest.raises(RuntimeError, match="is used by transport"):
        loop.add_reader(ours.fileno(), print)
    with pytest.raises(RuntimeError, match="is used by transport"):
        loop.remove_writer(ours.fileno())
    await ended(client)
    theirs.close()
