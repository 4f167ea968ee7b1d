"""TLS: connections, servers, upgrades, certificates, time-outs, big transfers and orderly ends."""

from __future__ import annotations

import asyncio
import io
import socket
import ssl
import struct

import pytest
import trustme

from .support import Echo, Peer, connected, ended, listener, serving

MIB = 1024 * 1024
LINGER_RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def server_context(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def client_context(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


@pytest.fixture
def contexts(server_context, client_context):
    return server_context, client_context


async def connect(address, context, factory=Peer, **options):
    options.setdefault("server_hostname", "localhost")
    loop = asyncio.get_running_loop()
    return (await loop.create_connection(factory, *address, ssl=context, **options))[1]


def collecting(peers, kind=Peer):
    def factory():
        peers.append(kind())
        return peers[-1]

    return factory


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


async def test_echo_over_tls(loop, contexts):
    async with serving(Echo, ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        for size in (1, 100, 20_000, 300_000):
            client.data.clear()
            client.transport.write(b"x" * size)
            await client.until_received(size)
            assert client.data == b"x" * size
        await ended(client)


async def test_calls_come_in_order(loop, contexts):
    peers = []
    async with serving(collecting(peers), ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        client.transport.write(b"hello")
        await until(lambda: peers and peers[0].data == b"hello")
        client.transport.close()
        await client.until_called("lost")
        await peers[0].until_called("lost")
        assert client.calls in (
            ["made", "eof", "lost"],
            ["made", "lost"],
        )  # does the peer's end come before ours?
        assert peers[0].calls == ["made", "data", "eof", "lost"]
        assert client.reason is None
        assert peers[0].reason is None


async def test_extra_info_tells_of_tls(loop, contexts):
    peers = []
    async with serving(collecting(peers), ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        tell = client.transport.get_extra_info
        assert tell("sslcontext") is contexts[1]
        assert isinstance(tell("ssl_object"), ssl.SSLObject)
        assert tell("ssl_object").version() == "TLSv1.3"
        assert tell("cipher") == tell("ssl_object").cipher()
        assert ("DNS", "localhost") in tell("peercert")["subjectAltName"]
        assert tell("compression") is None
        assert tell("peername") == address
        assert tell("socket").getpeername() == address
        await until(lambda: peers and peers[0].calls)
        assert peers[0].transport.get_extra_info("sslcontext") is contexts[0]
        assert not peers[0].transport.get_extra_info("peercert")
        await ended(client)


async def test_an_older_protocol_version_works(loop, authority, server_context):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(Echo, ssl=server_context) as address:
        client = await connect(address, context)
        client.transport.write(b"x" * 100_000)
        await client.until_received(100_000)
        assert client.transport.get_extra_info("ssl_object").version() == "TLSv1.2"
        await ended(client)


async def test_client_certificates_are_seen_by_the_server(loop, authority):
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_side)
    authority.configure_trust(server_side)
    server_side.verify_mode = ssl.CERT_REQUIRED
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client_side)
    authority.issue_cert("client.test").configure_cert(client_side)
    peers = []
    async with serving(collecting(peers), ssl=server_side) as address:
        client = await connect(address, client_side)
        await until(lambda: peers and peers[0].calls)
        certificate = peers[0].transport.get_extra_info("peercert")
        assert certificate["subjectAltName"] == (("DNS", "client.test"),)
        await ended(client)


async def test_alpn_is_agreed(loop, authority):
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_side)
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client_side)
    server_side.set_alpn_protocols(["h2", "http/1.1"])
    client_side.set_alpn_protocols(["http/1.1"])
    async with serving(Echo, ssl=server_side) as address:
        client = await connect(address, client_side)
        assert client.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        await ended(client)


# Certificates that do not fit


async def test_an_unknown_authority_is_refused(loop, server_context, loop_errors):
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trustme.CA().configure_trust(other)
    async with serving(Echo, ssl=server_context) as address:
        with pytest.raises(ssl.SSLCertVerificationError, match="CERTIFICATE_VERIFY_FAILED"):
            await connect(address, other)
        await asyncio.sleep(0.01)
    loop_errors.clear()  # the server's side of it is told in debug mode, or not


async def test_a_wrong_hostname_is_refused(loop, contexts, loop_errors):
    async with serving(Echo, ssl=contexts[0]) as address:
        with pytest.raises(ssl.SSLCertVerificationError, match=r"Hostname mismatch|doesn't match"):
            await connect(address, contexts[1], server_hostname="elsewhere.test")
        await asyncio.sleep(0.01)
    loop_errors.clear()


async def test_an_ip_address_is_a_hostname_too(loop, contexts):
    async with serving(Echo, ssl=contexts[0]) as (host, port):
        transport, client = await loop.create_connection(Peer, host, port, ssl=contexts[1])
        assert transport.get_extra_info("ssl_object").server_hostname == "127.0.0.1"
        await ended(client)


async def test_a_peer_that_does_not_speak_tls(loop, contexts):
    class Plain(Peer):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.write(b"220 hello, this is no TLS\r\n" * 10)

    async with serving(Plain) as address:
        with pytest.raises(ssl.SSLError):
            await connect(address, contexts[1])


async def test_a_peer_that_hangs_up_in_the_handshake(loop, contexts):
    class HangingUp(Peer):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.close()

    async with serving(HangingUp) as address:
        with pytest.raises((ConnectionResetError, ConnectionAbortedError, ssl.SSLError, BrokenPipeError)):
            await connect(address, contexts[1])


async def test_rubbish_sent_to_a_tls_server_costs_one_connection(loop, contexts, loop_errors):
    async with serving(Echo, ssl=contexts[0]) as address:
        _, rubbish = await loop.create_connection(Peer, *address)
        rubbish.transport.write(b"GET / HTTP/1.0\r\n\r\n")
        await rubbish.until_called("lost")
        client = await connect(address, contexts[1])
        client.transport.write(b"hi")
        await client.until_received(2)
        await ended(client)
    loop_errors.clear()


# Time-outs


async def test_the_handshake_times_out(loop, contexts):
    too_long = pytest.raises(ConnectionAbortedError, match=r"SSL handshake is taking longer than 0\.05")
    with listener() as silent, too_long:
        await connect(silent.getsockname(), contexts[1], ssl_handshake_timeout=0.05)


async def test_the_servers_handshake_times_out(loop, contexts, loop_errors):
    async with serving(Echo, ssl=contexts[0], ssl_handshake_timeout=0.05) as address:
        _, silent = await loop.create_connection(Peer, *address)
        await silent.until_called("lost")
    loop_errors.clear()


async def test_a_cancelled_handshake_leaves_nothing(loop, contexts):
    with listener() as silent:
        connecting = loop.create_task(connect(silent.getsockname(), contexts[1]))
        await asyncio.sleep(0.01)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await asyncio.sleep(0.01)


async def test_the_shutdown_times_out(loop, contexts, loop_errors):
    """The peer's TLS never answers close_notify: the connection ends all the same."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    async def handshake_by_hand():
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = contexts[0].wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await loop.sock_sendall(theirs, outgoing.read())
                incoming.write(await loop.sock_recv(theirs, 65536))
        await loop.sock_sendall(theirs, outgoing.read())
        return tls

    by_hand = loop.create_task(handshake_by_hand())
    transport, client = await loop.create_connection(
        Peer, sock=ours, ssl=contexts[1], server_hostname="localhost", ssl_shutdown_timeout=0.05
    )
    await by_hand
    transport.close()
    await asyncio.wait_for(client.until_called("lost"), 5)
    theirs.close()
    loop_errors.clear()


@pytest.mark.asyncio_flawed(True, "leaves the socket open when it refuses the time-out")
@pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
@pytest.mark.parametrize("value", [0, -1])
async def test_time_outs_must_be_positive(loop, contexts, name, value):
    with listener() as server, pytest.raises(ValueError, match=f"{name} should be a positive number"):
        await connect(server.getsockname(), contexts[1], **{name: value})


# Transfers and flow


async def test_big_transfers_both_ways_at_once(loop, contexts):
    payload = bytes(range(256)) * (8 * MIB // 256)
    peers = []
    async with serving(collecting(peers), ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        await until(lambda: peers and peers[0].calls)
        client.transport.write(payload)
        peers[0].transport.write(payload)
        await client.until_received(len(payload))
        await peers[0].until_received(len(payload))
        assert client.data == payload
        assert peers[0].data == payload
        await ended(client)


async def test_many_small_writes_and_writelines(loop, contexts):
    lines = [b"%06d" % number for number in range(3000)]
    peers = []
    async with serving(collecting(peers), ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        for line in lines:
            client.transport.write(line)
        client.transport.writelines(lines)
        await until(lambda: peers and len(peers[0].data) == 36_000)
        assert peers[0].data == b"".join(lines) * 2
        await ended(client)


async def test_close_sends_what_is_queued(loop, contexts):
    peers = []
    async with serving(collecting(peers), ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        client.transport.write(b"x" * (4 * MIB))
        client.transport.close()
        await client.until_called("lost")
        await peers[0].until_called("lost")
        assert len(peers[0].data) == 4 * MIB


async def test_the_writer_is_paused_and_resumed(loop, contexts):
    peers = []
    async with serving(collecting(peers), ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        await until(lambda: peers and peers[0].calls)
        peers[0].transport.pause_reading()
        assert not peers[0].transport.is_reading()
        total = 0
        while "pause" not in client.calls:
            client.transport.write(b"x" * 200_000)
            total += 200_000
            await asyncio.sleep(0)
            assert total < 100 * MIB
        peers[0].transport.resume_reading()
        await client.until_called("resume")
        await peers[0].until_received(total)
        await ended(client)


async def test_a_paused_reader_receives_nothing(loop, contexts):
    peers = []
    async with serving(collecting(peers), ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        await until(lambda: peers and peers[0].calls)
        peers[0].transport.pause_reading()
        client.transport.write(b"later")
        await asyncio.sleep(0.02)
        assert peers[0].calls == ["made"]
        peers[0].transport.resume_reading()
        await peers[0].until_received(5)
        await ended(client)


async def test_there_is_no_half_close(loop, contexts):
    async with serving(Echo, ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        assert client.transport.can_write_eof() is False
        with pytest.raises(NotImplementedError):
            client.transport.write_eof()
        await ended(client)


async def test_keeping_open_at_eof_is_not_possible(loop, contexts):
    """eof_received returning True is not honoured over TLS: the connection ends all the same."""
    peers = []
    async with serving(collecting(peers, lambda: Peer(keep_open_at_eof=True)), ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        await until(lambda: peers and peers[0].calls)
        client.transport.close()
        await peers[0].until_called("lost")
        assert "eof" in peers[0].calls


async def test_abort_ends_at_once(loop, contexts):
    peers = []
    async with serving(collecting(peers), ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        await until(lambda: peers and peers[0].calls)
        peers[0].transport.pause_reading()
        client.transport.write(b"x" * (16 * MIB))
        client.transport.abort()
        await client.until_called("lost")
        peers[0].transport.resume_reading()
        await peers[0].until_called("lost")
        assert len(peers[0].data) < 16 * MIB


async def test_a_reset_reaches_the_protocol(loop, contexts):
    peers = []
    async with serving(collecting(peers), ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        await until(lambda: peers and peers[0].calls)
        client.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET
        )
        client.transport.abort()
        await peers[0].until_called("lost")
        assert isinstance(peers[0].reason, ConnectionResetError)


async def test_writes_after_close_go_nowhere(loop, contexts):
    peers = []
    async with serving(collecting(peers), ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        client.transport.close()
        client.transport.write(b"late")
        await client.until_called("lost")
        client.transport.write(b"later")
        await until(lambda: peers and "lost" in peers[0].calls)
        assert peers[0].data == b""


@pytest.mark.parametrize("wrong", ["text", 7, None])
async def test_write_refuses_other_types(loop, contexts, wrong):
    async with serving(Echo, ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        with pytest.raises(TypeError, match="bytes-like"):
            client.transport.write(wrong)
        await ended(client)


async def test_an_exception_in_data_received_ends_the_connection(loop, contexts, loop_errors):
    class Failing(Peer):
        def data_received(self, data):
            raise LookupError("in data_received")

    peers = []
    async with serving(collecting(peers, Failing), ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        client.transport.write(b"x")
        await client.until_called("lost")
        await peers[0].until_called("lost")
        assert isinstance(peers[0].reason, LookupError)
        assert [type(context["exception"]) for context in loop_errors] == [LookupError]
        loop_errors.clear()


async def test_sendfile_falls_back(loop, contexts, tmp_path):
    content = bytes(range(256)) * 4096
    path = tmp_path / "content"
    path.write_bytes(content)
    peers = []
    async with serving(collecting(peers), ssl=contexts[0]) as address:
        client = await connect(address, contexts[1])
        with path.open("rb") as file:
            assert await loop.sendfile(client.transport, file) == len(content)
        with pytest.raises(RuntimeError, match="fallback is disabled"):
            await loop.sendfile(client.transport, io.BytesIO(content), fallback=False)
        await until(lambda: peers and len(peers[0].data) == len(content))
        assert peers[0].data == content
        await ended(client)


# start_tls


async def test_both_sides_upgrade(loop, contexts):
    async with connected() as (client, peer):
        client.transport.write(b"plain")
        await peer.until_received(5)
        plain_client, plain_peer = client.transport, peer.transport
        client_tls, peer_tls = await asyncio.gather(
            loop.start_tls(plain_client, client, contexts[1], server_hostname="localhost"),
            loop.start_tls(plain_peer, peer, contexts[0], server_side=True),
        )
        client_tls.write(b"secret" * 50_000)
        await peer.until_received(5 + 300_000)
        peer_tls.write(b"answer")
        await client.until_received(6)
        assert peer.data == b"plain" + b"secret" * 50_000
        assert client_tls.get_extra_info("ssl_object").version().startswith("TLS")
        assert client_tls.get_protocol() is client
        client_tls.close()
        await client.until_called("lost")
        await peer.until_called("lost")
        assert client.calls.count("made") == 1


async def test_start_tls_refuses_what_is_no_context(loop):
    async with connected() as (client, _):
        with pytest.raises(TypeError, match=r"sslcontext is expected to be an instance of ssl.SSLContext"):
            await loop.start_tls(client.transport, client, None)


async def test_start_tls_refuses_foreign_transports(loop, contexts):
    with pytest.raises(TypeError, match="is not supported by start_tls"):
        await loop.start_tls(asyncio.Transport(), Peer(), contexts[1])


async def test_start_tls_times_out(loop, contexts):
    async with connected() as (client, _):
        with pytest.raises(ConnectionAbortedError, match="SSL handshake is taking longer"):
            await loop.start_tls(
                client.transport, client, contexts[1], server_hostname="localhost", ssl_handshake_timeout=0.05
            )
        client.calls.append("lost")  # asyncio has taken the protocol off the transport by now
        client.transport.abort()


async def test_tls_inside_tls(loop, contexts):
    async with connected() as (client, peer):
        outer_client, outer_peer = await asyncio.gather(
            loop.start_tls(client.transport, client, contexts[1], server_hostname="localhost"),
            loop.start_tls(peer.transport, peer, contexts[0], server_side=True),
        )
        inner_client, inner_peer = await asyncio.gather(
            loop.start_tls(outer_client, client, contexts[1], server_hostname="localhost"),
            loop.start_tls(outer_peer, peer, contexts[0], server_side=True),
        )
        inner_client.write(b"twice wrapped" * 10_000)
        await peer.until_received(130_000)
        inner_peer.write(b"answer")
        await client.until_received(6)
        inner_client.abort()
        await client.until_called("lost")


async def test_connect_accepted_socket_with_tls(loop, contexts):
    with listener() as server:
        connecting = loop.create_task(connect(server.getsockname(), contexts[1]))
        accepted, _ = await loop.sock_accept(server)
        transport, echo = await loop.connect_accepted_socket(Echo, accepted, ssl=contexts[0])
        client = await connecting
        client.transport.write(b"hi")
        await client.until_received(2)
        assert transport.get_extra_info("sslcontext") is contexts[0]
        await ended(client)
        await echo.until_called("lost")


async def test_unix_sockets_with_tls(loop, contexts, tmp_path):
    path = str(tmp_path / "socket")
    server = await loop.create_unix_server(Echo, path, ssl=contexts[0])
    transport, client = await loop.create_unix_connection(
        Peer, path, ssl=contexts[1], server_hostname="localhost"
    )
    transport.write(b"hi")
    await client.until_received(2)
    await ended(client)
    server.close()
    await server.wait_closed()


async def test_streams_start_tls(loop, contexts):
    async def handle(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        await writer.start_tls(contexts[0])
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"plain\n")
    assert await reader.readline() == b"plain\n"
    await writer.start_tls(contexts[1], server_hostname="localhost")
    writer.write(b"secret\n")
    assert await reader.readline() == b"secret\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
