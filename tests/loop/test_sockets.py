"""sock_recv and its kin: on bare non-blocking sockets, cancelled, misused."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import ssl

import pytest

from .support import listener, turns


@pytest.fixture
def pair():
    one, two = socket.socketpair()
    one.setblocking(False)
    two.setblocking(False)
    yield one, two
    one.close()
    two.close()


@pytest.fixture
def datagrams():
    socks = []
    for _ in range(2):
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        socks.append(sock)
    yield socks
    for sock in socks:
        sock.close()


async def test_what_was_sent_is_received(loop, pair):
    one, two = pair
    assert await loop.sock_sendall(one, b"hello") is None
    assert await loop.sock_recv(two, 100) == b"hello"


async def test_recv_waits_for_data(loop, pair):
    one, two = pair
    waiting = loop.create_task(loop.sock_recv(two, 100))
    await turns()
    assert not waiting.done()
    one.send(b"at last")
    assert await waiting == b"at last"


async def test_recv_takes_no_more_than_asked_for(loop, pair):
    one, two = pair
    one.send(b"abcdef")
    assert [await loop.sock_recv(two, 4), await loop.sock_recv(two, 4)] == [b"abcd", b"ef"]


async def test_recv_at_the_end_returns_nothing(loop, pair):
    one, two = pair
    one.close()
    assert await loop.sock_recv(two, 100) == b""


async def test_recv_into_fills_a_buffer(loop, pair):
    one, two = pair
    buffer = bytearray(10)
    one.send(b"abc")
    assert await loop.sock_recv_into(two, buffer) == 3
    assert buffer[:3] == b"abc"
    waiting = loop.create_task(loop.sock_recv_into(two, memoryview(buffer)[5:]))
    await turns()
    one.send(b"def")
    assert await waiting == 3
    assert buffer[5:8] == b"def"


async def test_sendall_of_much_waits_for_the_reader(loop, pair):
    one, two = pair
    payload = os.urandom(1 << 20) * 8
    sending = loop.create_task(loop.sock_sendall(one, payload))
    await turns()
    assert not sending.done()
    received = bytearray()
    while len(received) < len(payload):
        received += await loop.sock_recv(two, 1 << 18)
    await sending
    assert received == payload


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_sendall_takes_every_buffer(loop, pair, kind):
    one, two = pair
    await loop.sock_sendall(one, kind(b"data"))
    await loop.sock_sendall(one, kind(b""))
    assert await loop.sock_recv(two, 100) == b"data"


async def test_sendall_to_a_closed_peer_raises(loop, pair):
    one, two = pair
    two.close()
    with pytest.raises(BrokenPipeError):
        await loop.sock_sendall(one, b"x")


async def test_connect_and_accept(loop):
    with listener() as server, socket.socket() as client:
        client.setblocking(False)
        accepting = loop.create_task(loop.sock_accept(server))
        await turns()
        await loop.sock_connect(client, server.getsockname())
        accepted, address = await accepting
        with accepted:
            assert address == client.getsockname()
            assert accepted.gettimeout() == 0
            assert not accepted.get_inheritable()
            await loop.sock_sendall(client, b"hi")
            assert await loop.sock_recv(accepted, 10) == b"hi"


async def test_connect_takes_a_name(loop):
    with listener() as server, socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, ("localhost", server.getsockname()[1]))
        assert client.getpeername() == server.getsockname()


async def test_connect_to_a_unix_path(loop, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.setblocking(False)
        await loop.sock_connect(client, path)
        assert client.getpeername() == path


async def test_connect_refused_raises(loop):
    with listener() as server:
        address = server.getsockname()
    with socket.socket() as client:
        client.setblocking(False)
        with pytest.raises(ConnectionRefusedError, match="Connect call failed"):
            await loop.sock_connect(client, address)


async def test_recvfrom_and_sendto(loop, datagrams):
    one, two = datagrams
    assert await loop.sock_sendto(one, b"hello", two.getsockname()) == 5
    assert await loop.sock_recvfrom(two, 100) == (b"hello", one.getsockname())
    waiting = loop.create_task(loop.sock_recvfrom(two, 3))
    await turns()
    await loop.sock_sendto(one, b"cut off", two.getsockname())
    assert await waiting == (b"cut", one.getsockname())


async def test_recvfrom_into(loop, datagrams):
    one, two = datagrams
    buffer = bytearray(100)
    await loop.sock_sendto(one, b"hello", two.getsockname())
    assert await loop.sock_recvfrom_into(two, buffer) == (5, one.getsockname())
    waiting = loop.create_task(loop.sock_recvfrom_into(two, buffer, 3))
    await turns()
    await loop.sock_sendto(one, b"HELLO", two.getsockname())
    assert await waiting == (3, one.getsockname())
    assert buffer[:5] == b"HELlo"


async def test_sendto_waits_for_room(loop, tmp_path):
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as two,
    ):
        path = str(tmp_path / "socket")
        two.bind(path)
        for sock in (one, two):
            sock.setblocking(False)
        sent = 0
        while True:
            sending = loop.create_task(loop.sock_sendto(one, b"x", path))
            await turns()
            if not sending.done():
                break
            sent += 1
            assert sent < 10_000
        for _ in range(sent + 1):
            assert await loop.sock_recv(two, 10) == b"x"
        assert await sending == 1


# Cancelling


async def test_a_cancelled_recv_takes_nothing(loop, pair):
    one, two = pair
    waiting = loop.create_task(loop.sock_recv(two, 100))
    await turns()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    one.send(b"for the next")
    await turns()
    assert await loop.sock_recv(two, 100) == b"for the next"


async def test_a_recv_cancelled_while_data_arrives_loses_none(loop, pair):
    one, two = pair
    for number in range(100):
        waiting = loop.create_task(loop.sock_recv(two, 100))
        await turns(2)
        one.send(b"%02d" % number)
        waiting.cancel()
        try:
            data = await waiting
        except asyncio.CancelledError:
            data = await loop.sock_recv(two, 100)
        assert data == b"%02d" % number


async def test_a_cancelled_sendall_stops(loop, pair):
    one, two = pair
    sending = loop.create_task(loop.sock_sendall(one, b"x" * (8 << 20)))
    await turns()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert not loop.remove_writer(one)
    assert await loop.sock_recv(two, 100) == b"x" * 100


async def test_a_cancelled_accept_takes_no_connection(loop):
    with listener() as server, socket.socket() as client:
        accepting = loop.create_task(loop.sock_accept(server))
        await turns()
        accepting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await accepting
        client.connect(server.getsockname())
        accepted, _ = await loop.sock_accept(server)
        accepted.close()


async def test_a_cancelled_connect_may_be_closed(loop):
    with listener(backlog=0) as server:
        clients = [socket.socket() for _ in range(4)]
        for client in clients:
            client.setblocking(False)
        connecting = [loop.create_task(loop.sock_connect(client, server.getsockname())) for client in clients]
        await turns()
        for task in connecting:
            task.cancel()
        results = await asyncio.gather(*connecting, return_exceptions=True)
        assert isinstance(results[-1], asyncio.CancelledError)
        for client in clients:
            client.close()


async def test_a_socket_closed_and_reopened_under_the_same_number(loop):
    for number in range(50):
        one, two = socket.socketpair()
        with one, two:
            one.setblocking(False)
            waiting = loop.create_task(loop.sock_recv(one, 100))
            await turns(2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        one, two = socket.socketpair()
        with one, two:
            one.setblocking(False)
            waiting = loop.create_task(loop.sock_recv(one, 100))
            await turns(2)
            two.send(b"%d" % number)
            assert await waiting == b"%d" % number


async def test_reading_and_writing_one_socket_at_once(loop, pair):
    one, two = pair

    async def read(sock, count):
        received = bytearray()
        while len(received) < count:
            received += await loop.sock_recv(sock, 1 << 16)
        return bytes(received)

    size = 4 << 20
    results = await asyncio.gather(
        loop.sock_sendall(one, b"1" * size),
        loop.sock_sendall(two, b"2" * size),
        read(one, size),
        read(two, size),
    )
    assert results == [None, None, b"2" * size, b"1" * size]


# sock_sendfile


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "content"
    path.write_bytes(bytes(range(256)) * 4096)
    with path.open("rb") as file:
        yield file


async def test_sock_sendfile_sends_a_file(loop, pair, file):
    one, two = pair
    sending = loop.create_task(loop.sock_sendfile(one, file, 10, 500_000))
    received = bytearray()
    while len(received) < 500_000:
        received += await loop.sock_recv(two, 1 << 16)
    assert await sending == 500_000
    assert received == (bytes(range(256)) * 4096)[10:500_010]
    assert file.tell() == 500_010


async def test_sock_sendfile_falls_back_for_other_objects(loop, pair):
    one, two = pair
    assert await loop.sock_sendfile(one, io.BytesIO(b"content"), 3) == 4
    assert await loop.sock_recv(two, 100) == b"tent"
    with pytest.raises(asyncio.SendfileNotAvailableError):
        await loop.sock_sendfile(one, io.BytesIO(b"content"), fallback=False)


async def test_a_cancelled_sock_sendfile_stops(loop, pair, tmp_path):
    one, _ = pair
    path = tmp_path / "large"
    with path.open("wb") as large:
        large.truncate(64 << 20)
    with path.open("rb") as large:
        sending = loop.create_task(loop.sock_sendfile(one, large))
        await turns()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    assert not loop.remove_writer(one)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, None), ValueError, "offset must be a non-negative integer"),
        (("0", None), TypeError, "offset must be a non-negative integer"),
        ((0, 0), ValueError, "count must be a positive integer"),
        ((0, -5), ValueError, "count must be a positive integer"),
        ((0, "7"), TypeError, "count must be a positive integer"),
    ],
)
async def test_sock_sendfile_refuses_wrong_ranges(loop, pair, file, arguments, error, message):
    with pytest.raises(error, match=message):
        await loop.sock_sendfile(pair[0], file, *arguments)


async def test_sock_sendfile_refuses_text_files(loop, pair, tmp_path):
    path = tmp_path / "text"
    path.write_text("text")
    with path.open() as text, pytest.raises(ValueError, match="file should be opened in binary mode"):
        await loop.sock_sendfile(pair[0], text)


async def test_sock_sendfile_refuses_datagram_sockets(loop, datagrams, file):
    with pytest.raises(ValueError, match="only SOCK_STREAM type sockets are supported"):
        await loop.sock_sendfile(datagrams[0], file)


# Misuse


@pytest.mark.parametrize(
    "use",
    [
        lambda loop, sock: loop.sock_recv(sock, 10),
        lambda loop, sock: loop.sock_recv_into(sock, bytearray(10)),
        lambda loop, sock: loop.sock_recvfrom(sock, 10),
        lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(10)),
        lambda loop, sock: loop.sock_sendall(sock, b"x"),
        lambda loop, sock: loop.sock_sendto(sock, b"x", ("127.0.0.1", 9)),
        lambda loop, sock: loop.sock_connect(sock, ("127.0.0.1", 9)),
        lambda loop, sock: loop.sock_accept(sock),
        lambda loop, sock: loop.sock_sendfile(sock, io.BytesIO(b"x")),
    ],
    ids=[
        "recv",
        "recv_into",
        "recvfrom",
        "recvfrom_into",
        "sendall",
        "sendto",
        "connect",
        "accept",
        "sendfile",
    ],
)
async def test_blocking_sockets_are_refused_in_debug(loop, use):
    loop.set_debug(True)
    with socket.socket() as sock, pytest.raises(ValueError, match="the socket must be non-blocking"):
        await use(loop, sock)


async def test_wrong_arguments_are_refused(loop, pair):
    one, two = pair
    two.send(b"there is data")
    with pytest.raises(TypeError):
        await loop.sock_recv(one, "ten")
    with pytest.raises(ValueError, match="negative buffersize"):
        await loop.sock_recv(one, -1)
    with pytest.raises(TypeError):
        await loop.sock_recv_into(one, b"read-only")
    with pytest.raises(TypeError):
        await loop.sock_recv_into(one, 7)
    with pytest.raises(TypeError):
        await loop.sock_sendall(one, "text")
    with pytest.raises(TypeError):
        await loop.sock_sendall(one, 7)
    with pytest.raises(TypeError):
        await loop.sock_sendto(one, 7, "address")
    with pytest.raises((TypeError, OSError)):
        await loop.sock_connect(one, 7)
    assert await loop.sock_recv(one, 100) == b"there is data"


async def test_a_closed_socket_raises(loop, pair):
    one, _ = pair
    one.close()
    with pytest.raises((OSError, ValueError)):
        await loop.sock_recv(one, 10)
    with pytest.raises((OSError, ValueError)):
        await loop.sock_sendall(one, b"x")
    with pytest.raises((OSError, ValueError)):
        await loop.sock_accept(one)


async def test_wrapped_tls_sockets_are_refused(loop):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with context.wrap_socket(socket.socket(), do_handshake_on_connect=False) as sock:
        for use in (
            loop.sock_recv(sock, 1),
            loop.sock_sendall(sock, b"x"),
            loop.sock_accept(sock),
            loop.sock_connect(sock, ("127.0.0.1", 9)),
        ):
            with pytest.raises(TypeError, match=r"Socket cannot be of type SSLSocket"):
                await use
