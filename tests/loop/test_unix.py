"""Unix sockets: paths, abstract names, and what becomes of the path when the server closes."""

from __future__ import annotations

import os
import pathlib
import socket
import stat

import pytest

from .support import SINCE_313, Echo, Peer, ended


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "socket")


async def exchange(loop, path, **options):
    transport, client = await loop.create_unix_connection(Peer, path, **options)
    transport.write(b"hello")
    await client.until_received(5)
    assert client.data == b"hello"
    await ended(client)


async def finish(server):
    server.close()
    await server.wait_closed()


async def test_a_path_is_served(loop, path):
    server = await loop.create_unix_server(Echo, path)
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    await exchange(loop, path)
    await finish(server)


async def test_path_objects_and_bytes_are_paths(loop, path):
    server = await loop.create_unix_server(Echo, pathlib.Path(path))
    await exchange(loop, pathlib.Path(path))
    await exchange(loop, path.encode())
    await finish(server)


@pytest.mark.parametrize("kind", [str, bytes])
async def test_abstract_names_are_served(loop, kind):
    name = f"\0unwait-test-{os.getpid()}"
    name = name if kind is str else name.encode()
    server = await loop.create_unix_server(Echo, name)
    await exchange(loop, name)
    await finish(server)


async def test_a_stale_socket_is_replaced(loop, path):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    server = await loop.create_unix_server(Echo, path)
    await exchange(loop, path)
    await finish(server)


async def test_a_plain_file_is_not_replaced(loop, path):
    pathlib.Path(path).write_text("precious")
    with pytest.raises(OSError, match="is already in use"):
        await loop.create_unix_server(Echo, path)
    assert pathlib.Path(path).read_text() == "precious"


async def test_the_path_is_removed_on_close_since_313(loop, path):
    await finish(await loop.create_unix_server(Echo, path))
    assert os.path.exists(path) is not SINCE_313


@pytest.mark.asyncio_since((3, 13), "cleanup_socket")
async def test_cleanup_socket_removes_the_path(loop, path):
    await finish(await loop.create_unix_server(Echo, path, cleanup_socket=True))
    assert not os.path.exists(path)


@pytest.mark.asyncio_since((3, 13), "cleanup_socket")
async def test_cleanup_socket_false_keeps_the_path(loop, path):
    await finish(await loop.create_unix_server(Echo, path, cleanup_socket=False))
    assert os.path.exists(path)


@pytest.mark.asyncio_since((3, 13), "cleanup_socket")
async def test_a_path_taken_over_by_another_server_is_kept(loop, path):
    first = await loop.create_unix_server(Echo, path, cleanup_socket=True)
    second = await loop.create_unix_server(Echo, path, cleanup_socket=True)
    await finish(first)
    await exchange(loop, path)
    await finish(second)
    assert not os.path.exists(path)


@pytest.mark.asyncio_since((3, 13), "cleanup_socket")
async def test_a_path_already_gone_at_close_is_no_error(loop, path):
    server = await loop.create_unix_server(Echo, path, cleanup_socket=True)
    os.unlink(path)
    await finish(server)


async def test_a_bound_socket_may_be_given(loop, path):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    server = await loop.create_unix_server(Echo, sock=sock)
    await exchange(loop, path)
    await finish(server)


async def test_a_connected_socket_may_be_given(loop):
    ours, theirs = socket.socketpair()
    transport, client = await loop.create_unix_connection(Peer, sock=ours)
    transport.write(b"hi")
    assert theirs.recv(10) == b"hi"
    await ended(client)
    theirs.close()


async def test_start_serving_may_be_put_off(loop, path):
    server = await loop.create_unix_server(Echo, path, start_serving=False)
    with pytest.raises(ConnectionRefusedError):
        await loop.create_unix_connection(Peer, path)
    await server.start_serving()
    await exchange(loop, path)
    await finish(server)


async def test_addresses_of_a_unix_transport(loop, path):
    server = await loop.create_unix_server(Echo, path)
    transport, client = await loop.create_unix_connection(Peer, path)
    assert transport.get_extra_info("peername") == path
    assert transport.get_extra_info("socket").family == socket.AF_UNIX
    await ended(client)
    await finish(server)


async def test_a_missing_path_raises(loop, path):
    with pytest.raises(FileNotFoundError):
        await loop.create_unix_connection(Peer, path)


async def test_a_path_too_long_raises(loop, tmp_path):
    long = str(tmp_path / ("x" * 200))
    with pytest.raises(OSError, match="too long"):
        await loop.create_unix_connection(Peer, long)
    with pytest.raises(OSError, match="too long"):
        await loop.create_unix_server(Peer, long)


async def test_a_directory_that_is_missing_raises(loop, tmp_path):
    with pytest.raises(FileNotFoundError):
        await loop.create_unix_server(Peer, str(tmp_path / "missing" / "socket"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no path and sock were specified"),
        ({"path": "p", "sock": True}, "path and sock can not be specified at the same time"),
        ({"path": "p", "server_hostname": "h"}, "server_hostname is only meaningful with ssl"),
        ({"path": "p", "ssl": True}, "you have to pass server_hostname when using ssl"),
        ({"path": "p", "ssl_handshake_timeout": 1}, "ssl_handshake_timeout is only meaningful with ssl"),
        ({"path": "p", "ssl_shutdown_timeout": 1}, "ssl_shutdown_timeout is only meaningful with ssl"),
    ],
)
async def test_create_unix_connection_refuses_what_makes_no_sense(loop, options, message):
    if options.get("sock"):
        options = {**options, "sock": socket.socket(socket.AF_UNIX)}
    with pytest.raises(ValueError, match=message):
        await loop.create_unix_connection(Peer, **options)
    if "sock" in options:
        options["sock"].close()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "path was not specified, and no sock specified"),
        ({"path": "p", "sock": True}, ValueError, "path and sock can not be specified at the same time"),
        ({"path": "p", "ssl": True}, TypeError, "ssl argument must be an SSLContext or None"),
        (
            {"path": "p", "ssl_handshake_timeout": 1},
            ValueError,
            "ssl_handshake_timeout is only meaningful with ssl",
        ),
        (
            {"path": "p", "ssl_shutdown_timeout": 1},
            ValueError,
            "ssl_shutdown_timeout is only meaningful with ssl",
        ),
    ],
)
async def test_create_unix_server_refuses_what_makes_no_sense(loop, options, error, message):
    if options.get("sock"):
        options = {**options, "sock": socket.socket(socket.AF_UNIX)}
    with pytest.raises(error, match=message):
        await loop.create_unix_server(Peer, **options)
    if "sock" in options:
        options["sock"].close()


async def test_other_families_are_refused(loop):
    with socket.socket(socket.AF_INET) as sock:
        with pytest.raises(ValueError, match="A UNIX Domain Stream Socket was expected"):
            await loop.create_unix_connection(Peer, sock=sock)
        with pytest.raises(ValueError, match="A UNIX Domain Stream Socket was expected"):
            await loop.create_unix_server(Peer, sock=sock)
