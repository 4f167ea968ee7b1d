"""What `Client` makes of odd bytes on its connections, and of connections that the pool takes away."""

from __future__ import annotations

import asyncio
import gzip
import os
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trustme

from unwait.web.client import Client
from unwait.web.errors import ConnectionFailed, ConnectionLost, InvalidAnswer

pytestmark = pytest.mark.usefixtures("loop")

Serve = Callable[..., AbstractAsyncContextManager[str]]
Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
END_OF_HEAD = b"\r\n\r\n"


async def pooled(client: Client) -> int:
    """How many connections wait for the next request, when what was sent to them has arrived."""
    for _ in range(20):
        await asyncio.sleep(0.005)
    connections = client.connector._conns.values()
    return sum(each[0].is_connected() for one_host in connections for each in one_host)


@pytest.mark.parametrize(
    "unasked",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong",
        b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX",
    ],
)
async def test_what_comes_unasked_is_not_the_next_answer(serve_wire: Serve, unasked: bytes) -> None:
    more = asyncio.Event()
    connections = 0

    async def talk(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(END_OF_HEAD)
        writer.write(OK)
        if connections == 1:
            await more.wait()
            writer.write(unasked)
        await reader.read()

    async with serve_wire(talk) as base, Client(retry=0) as client:
        assert (await client.get(base)).content == b"ok"
        assert await pooled(client) == 1
        more.set()
        assert await pooled(client) == 0
        answer = await client.post(base)
    assert (answer.status, answer.content, answer.attempts, connections) == (200, b"ok", 1, 2)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "head",
    [b"304 Not Modified", b"204 No Content", b"200 OK\r\nContent-Length: 0"],
    ids=["304", "204", "empty"],
)
async def test_an_answer_without_a_body_may_name_any_encoding(
    serve_wire: Serve, method: str, head: bytes
) -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(END_OF_HEAD)
        writer.write(b"HTTP/1.1 %s\r\nContent-Encoding: br\r\n\r\n" % head)

    async with serve_wire(talk) as base, Client(retry=0) as client:
        response = await client.request(method, base)
    assert (response.status, response.content) == (int(head[:3]), b"")


async def test_a_body_encoded_twice_is_not_taken_for_one_encoded_once(serve_wire: Serve) -> None:
    body = gzip.compress(gzip.compress(b"body"))

    async def talk(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(END_OF_HEAD)
        twice = b"Content-Encoding: gzip\r\n" * 2
        writer.write(b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s" % (twice, len(body), body))

    async with serve_wire(talk) as base, Client(retry=0) as client:
        with pytest.raises(InvalidAnswer, match="unsupported content encoding 'gzip, gzip'"):
            await client.get(base)


async def test_closing_ends_the_wait_for_a_connection_with_an_error_of_the_client(serve_wire: Serve) -> None:
    asked = asyncio.Event()

    async def never(reader: Reader, _: Writer) -> None:
        await reader.readuntil(END_OF_HEAD)
        asked.set()
        await reader.read()

    async with serve_wire(never) as busy:
        redirected = asyncio.Event()

        async def redirect(reader: Reader, writer: Writer) -> None:
            await reader.readuntil(END_OF_HEAD)
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % busy.encode())
            redirected.set()

        async with serve_wire(redirect) as base:
            async with Client(retry=0, per_host=1) as client:
                tasks = [asyncio.create_task(client.get(busy))]
                await asked.wait()
                tasks.append(asyncio.create_task(client.get(base)))
                await redirected.wait()
                while not client.connector._waiters:
                    await asyncio.sleep(0)
            ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in ended] == [ConnectionLost] * 2
    assert "the client was closed" in str(ended[1])


async def test_a_file_may_have_the_longest_name_there_is(serve_wire: Serve, tmp_path: Path) -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(END_OF_HEAD)
        writer.write(OK)

    path = tmp_path / ("n" * 255)
    async with serve_wire(talk) as base, Client(retry=0) as client:
        assert (await client.get(base, save_to=str(path))).path == path
        with pytest.raises(ValueError, match="keep"):
            await client.get(base, keep=-1)
    assert path.read_bytes() == b"ok"
    assert os.listdir(tmp_path) == [path.name]


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes the proxy at an address, for a scheme, the one that the environment names."""

    def name(scheme: str, address: str) -> None:
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv(f"{scheme}_proxy", address)

    return name


async def test_a_proxy_that_talks_no_http_is_told(
    serve_wire: Serve, through: Callable[[str, str], None]
) -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(END_OF_HEAD)
        writer.write(b"220 mail.example\r\n\r\n")

    async with serve_wire(talk) as proxy:
        through("https", proxy)
        async with Client(retry=0) as client:
            with pytest.raises(ConnectionFailed, match="not a valid HTTP answer"):
                await client.get("https://example.invalid/")


async def test_a_proxy_with_tls_is_verified_as_servers_are(
    serve_wire: Serve,
    through: Callable[[str, str], None],
    authority: trustme.CA,
    server_tls: ssl.SSLContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        assert (await reader.readuntil(END_OF_HEAD)).startswith(b"GET http://example.invalid/ HTTP/1.1\r\n")
        writer.write(OK)
        await reader.read()

    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    async with serve_wire(talk, tls=server_tls) as proxy:
        through("http", proxy)
        async with Client(retry=0) as client:
            assert (await client.get("http://example.invalid/")).content == b"ok"


async def test_a_certificate_for_another_host_is_no_matter_of_authorities(
    serve_wire: Serve, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(reader: Reader, _: Writer) -> None:
        await reader.read()

    other = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("other.example").configure_cert(other)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    async with serve_wire(talk, tls=other) as base, Client(retry=0) as client:
        with pytest.raises(ConnectionFailed, match="mismatch") as caught:
            await client.get(base)
    assert caught.value.hint == ""
