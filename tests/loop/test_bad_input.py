"""Wrong types, closed loops, closed transports, foreign loops, bad addresses, oversized anything."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import warnings

import pytest

from .support import Peer, connected, ended, serving, turns

HUGE = 10**30


# Wrong types and numbers for callbacks


@pytest.mark.parametrize("wrong", ["soon", None, object()])
def test_delays_must_be_numbers(loop, wrong):
    with pytest.raises(TypeError):
        loop.call_later(wrong, print)


def test_no_delay_at_all_is_refused(loop):
    with pytest.raises(TypeError, match="delay must not be None"):
        loop.call_later(None, print)
    with pytest.raises(TypeError, match="when cannot be None"):
        loop.call_at(None, print)


def test_missing_arguments_are_refused(loop):
    for use in (loop.call_soon, loop.call_soon_threadsafe, loop.call_later, loop.call_at):
        with pytest.raises(TypeError):
            use()
    for use in (loop.call_later, loop.call_at):
        with pytest.raises(TypeError):
            use(1)


def test_unknown_keywords_are_refused(loop):
    for use in (loop.call_soon, loop.call_soon_threadsafe):
        with pytest.raises(TypeError):
            use(print, nothing=1)
    with pytest.raises(TypeError):
        loop.call_later(1, print, nothing=1)
    with pytest.raises(TypeError):
        loop.add_reader(0, print, nothing=1)


def test_what_cannot_be_called_fails_when_it_is_due(loop, loop_errors):
    loop.call_soon(7)
    loop.call_soon(print, 1, 2, 3, context=None).cancel()
    loop.stop()
    loop.run_forever()
    assert [type(context["exception"]) for context in loop_errors] == [TypeError]
    loop_errors.clear()


def test_a_wrong_number_of_arguments_fails_when_it_is_due(loop, loop_errors):
    loop.call_soon(lambda a: a)
    loop.call_soon(lambda: None, 1, 2)
    loop.stop()
    loop.run_forever()
    assert [type(context["exception"]) for context in loop_errors] == [TypeError, TypeError]
    loop_errors.clear()


def test_delays_out_of_range(loop):
    handles = [loop.call_later(float("inf"), print), loop.call_later(-float("inf"), int)]
    loop.call_later(0.002, loop.stop)
    loop.run_forever()
    for handle in handles:
        handle.cancel()


def test_a_huge_integer_delay_does_not_crash(loop):
    try:
        handle = loop.call_later(HUGE, print)
    except OverflowError:
        return
    handle.cancel()


def test_run_until_complete_of_anything_else(loop):
    for wrong in (None, 7, "text", print, object):
        with pytest.raises(TypeError):
            loop.run_until_complete(wrong)


def test_task_and_coroutine_confusion(loop):
    for wrong in (None, 7, print, loop.create_future()):
        with pytest.raises(TypeError, match="a coroutine was expected"):
            loop.create_task(wrong)


def test_executors_of_a_wrong_type(loop):
    with pytest.raises(AttributeError):
        loop.run_in_executor("threads", print)
    with pytest.raises(TypeError):
        loop.set_default_executor("threads")


# Closed loops


async def test_a_protocol_outliving_its_loop_is_harmless(loop, loop_factory):
    other = loop_factory()
    future = other.create_future()
    other.close()
    with pytest.raises(RuntimeError):
        await future


def test_transports_of_a_closed_loop(loop):
    ours, theirs = socket.socketpair()
    transport, protocol = loop.run_until_complete(loop.create_connection(Peer, sock=ours))
    transport.abort()
    loop.run_until_complete(protocol.until_called("lost"))
    loop.close()
    transport.close()
    transport.abort()
    theirs.close()


@pytest.mark.parametrize(
    "use",
    [
        lambda loop, sock: loop.sock_recv(sock, 1),
        lambda loop, sock: loop.sock_accept(sock),
        lambda loop, sock: loop.create_connection(Peer, sock=sock),
        lambda loop, sock: loop.create_server(Peer, "127.0.0.1", 0),
        lambda loop, sock: loop.create_datagram_endpoint(Peer, local_addr=("127.0.0.1", 0)),
        lambda loop, sock: loop.getaddrinfo("localhost", 80),
    ],
    ids=["recv", "accept", "connection", "server", "datagram", "getaddrinfo"],
)
def test_coroutines_of_a_closed_loop_cannot_be_run(loop, use):
    with socket.socket() as sock:
        coroutine = use(loop, sock)
        loop.close()
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            loop.run_until_complete(coroutine)
        coroutine.close()


# Foreign loops


async def test_a_future_of_another_loop_cannot_be_awaited(loop, loop_factory):
    other = loop_factory()

    async def wait():
        await other.create_future()

    with pytest.raises(RuntimeError, match="attached to a different loop"):
        await loop.create_task(wait())
    other.close()


def test_a_lock_of_another_loop_cannot_be_waited_for(loop, loop_factory):
    lock = asyncio.Lock()

    async def hold(other=None):
        await lock.acquire()
        if other is None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(lock.acquire(), 0.001)

    async def wait():
        await lock.acquire()

    loop.run_until_complete(hold())
    with pytest.raises(RuntimeError, match="is bound to a different event loop"):
        loop_factory().run_until_complete(wait())


# Closed transports


async def test_a_lost_transport_answers_everything(loop):
    async with connected() as (client, _):
        transport = client.transport
        transport.abort()
        await client.until_called("lost")
        await turns()
        assert transport.is_closing()
        assert transport.is_reading() is False
        assert transport.get_write_buffer_size() == 0
        assert transport.get_extra_info("peername")
        assert "closed" in repr(transport)
        transport.close()
        transport.pause_reading()
        transport.resume_reading()
        transport.write(b"late")
        transport.set_write_buffer_limits(high=10)
        assert transport.get_write_buffer_limits() == (2, 10)
        assert transport.get_extra_info("socket") is not None
        await turns()
        assert client.calls == ["made", "lost"]


async def test_sendfile_and_start_tls_on_a_lost_transport(loop, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    async with connected() as (client, _):
        client.transport.abort()
        await client.until_called("lost")
        with path.open("rb") as file, pytest.raises(RuntimeError, match="Transport is closing"):
            await loop.sendfile(client.transport, file)


# Bad addresses


@pytest.mark.parametrize(
    ("host", "port", "errors"),
    [
        ("127.0.0.1", 70_000, (OverflowError,)),
        ("127.0.0.1", -1, (OverflowError,)),
        ("127.0.0.1", "no-such-service", (socket.gaierror,)),
        ("127.0.0.1", 1.5, (TypeError, OSError)),
        ("127.0.0.1", HUGE, (OverflowError, OSError)),
        (7, 80, (TypeError, AttributeError)),
        ("256.256.256.256", 80, (socket.gaierror,)),
        ("", -1, (OverflowError, OSError)),
        ("a\0b", 80, (ValueError, socket.gaierror)),
        ("x" * 300, 80, (UnicodeError, socket.gaierror)),
        ("127.0.0.1 ", 80, (socket.gaierror,)),
    ],
)
async def test_bad_addresses_raise(loop, host, port, errors):
    with pytest.raises(errors):
        await loop.create_connection(Peer, host, port)


@pytest.mark.parametrize(
    ("host", "port", "errors"),
    [
        ("127.0.0.1", 70_000, (OverflowError,)),
        ("127.0.0.1", "http!", (socket.gaierror,)),
        ("192.0.2.1", 0, (OSError,)),
        (7, 80, (TypeError, AttributeError)),
    ],
)
async def test_bad_addresses_for_servers_raise(loop, host, port, errors):
    with pytest.raises(errors):
        await loop.create_server(Peer, host, port)


async def test_a_local_address_of_another_family(loop):
    with pytest.raises(
        OSError, match=r"no matching local address|Address family|Connect call failed|Multiple exc|getaddr"
    ):
        await loop.create_connection(Peer, "127.0.0.1", 1, local_addr=("::1", 0))


async def test_family_and_host_that_do_not_fit(loop):
    with pytest.raises(socket.gaierror):
        await loop.create_connection(Peer, "127.0.0.1", 80, family=socket.AF_INET6)


async def test_sockets_that_are_no_sockets(loop):
    for wrong in (7, "text", object()):
        with pytest.raises(AttributeError):
            await loop.create_connection(Peer, sock=wrong)
        with pytest.raises(AttributeError):
            await loop.create_server(Peer, sock=wrong)


async def test_a_socket_that_is_not_connected(loop):
    sock = socket.socket()
    transport, client = await loop.create_connection(Peer, sock=sock)
    transport.write(b"x")
    await client.until_called("lost")
    assert isinstance(client.reason, OSError)
    assert sock.fileno() == -1


async def test_a_closed_socket(loop):
    sock = socket.socket()
    sock.close()
    with pytest.raises((OSError, ValueError)):
        await loop.create_connection(Peer, sock=sock)


# Oversized


async def test_an_oversized_datagram_is_an_error_not_a_crash(loop):
    errors = []

    class Protocol(asyncio.DatagramProtocol):
        def error_received(self, exc):
            errors.append(exc)

    transport, _ = await loop.create_datagram_endpoint(Protocol, remote_addr=("127.0.0.1", 9))
    transport.sendto(bytes(10_000_000))
    assert isinstance(errors[0], OSError)
    transport.close()
    await turns()


async def test_a_read_larger_than_memory_is_refused(loop):
    one, two = socket.socketpair()
    with one, two:
        one.setblocking(False)
        with pytest.raises((OverflowError, MemoryError)):
            await loop.sock_recv(one, HUGE)


async def test_oversized_watermarks(loop):
    async with connected() as (client, peer):
        client.transport.set_write_buffer_limits(high=sys.maxsize)
        client.transport.write(b"x" * 1_000_000)
        await peer.until_received(1_000_000)
        assert "pause" not in client.calls


async def test_an_oversized_backlog(loop):
    async with serving(Peer, backlog=100_000) as address:
        _, client = await loop.create_connection(Peer, *address)
        await ended(client)


async def test_many_arguments(loop):
    seen = []
    loop.call_soon(lambda *args: seen.append(len(args)), *range(1000))
    await turns()
    assert seen == [1000]


# Protocols that are none


@pytest.mark.parametrize("factory", [object, lambda: None, lambda: 7], ids=["object", "None", "number"])
async def test_a_protocol_that_is_none(loop, factory):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(AttributeError, match="connection_made"):
            await loop.create_connection(factory, sock=ours)
        with warnings.catch_warnings():  # no loop closes the transport that it could not begin with
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


async def test_a_factory_that_cannot_be_called(loop):
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TypeError):
        await loop.create_connection(7, sock=ours)
