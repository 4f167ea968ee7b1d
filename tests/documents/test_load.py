"""The bytes of a source, and the causes where there are none."""

from __future__ import annotations

import asyncio
import os
import socket
import tracemalloc
from contextlib import AbstractAsyncContextManager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from flaky_api import FlakyApi
from flaky_faults import Faults

from unwait.documents.load import load
from unwait.documents.model import Content, Source, SourceFailed, State, Versions
from unwait.web.client import Client

from .server_support import serving


def opened(**options: Any) -> AbstractAsyncContextManager[Client]:
    return Client(**{"retry": 0, "breaker": False, **options})


def at(url: str) -> Source:
    return Source(url, url)


def of(path: Path) -> Source:
    return Source(str(path), str(path), path=str(path))


async def cause(
    source: Source, known: State | None = None, max_bytes: int = 1 << 20, **options: Any
) -> SourceFailed:
    async with opened(max_bytes=max_bytes, **options) as client:
        with pytest.raises(SourceFailed) as failed:
            await load(source, known, client, max_bytes=max_bytes)
    return failed.value


async def test_a_file_is_read_with_its_digest_and_type(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.MD"
    path.write_bytes(b"# text")
    async with opened() as client:
        content = await load(of(path), None, client, max_bytes=6)
        assert content == Content(b"# text", blake2b(b"# text", digest_size=16).hexdigest(), "text/markdown")
        (tmp_path / "empty.bin").touch()
        empty = await load(of(tmp_path / "empty.bin"), None, client, max_bytes=6)
        assert empty is not None
        assert (empty.body, empty.media_type) == (b"", None)


async def test_a_file_that_is_too_large_is_not_read(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "sparse.txt"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    failed = await cause(of(path), max_bytes=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert failed.kind == "too large"
    assert "1,000 bytes" in str(failed)
    assert peak < 4 << 20


async def test_a_file_that_says_it_is_empty_and_is_not_is_bounded_too(loop: Any) -> None:
    async with opened() as client:
        content = await load(of(Path("/proc/self/status")), None, client, max_bytes=1 << 20)
    assert content is not None
    assert content.body.startswith(b"Name:")
    assert (await cause(of(Path("/proc/self/status")), max_bytes=10)).kind == "too large"


async def test_a_file_that_is_gone_is_gone_and_a_pipe_does_not_hang(loop: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    gone = await cause(of(tmp_path / "gone"))
    assert (gone.kind, gone.gone) == ("not found", True)
    for path in (tmp_path / "pipe", tmp_path):
        failed = await cause(of(path))
        assert (failed.kind, failed.gone) == ("not a file", False)


async def test_what_the_listing_brought_along_is_the_content(loop: Any) -> None:
    content = Content(b"x", "digest")
    async with opened() as client:
        source = Source("http://nowhere.invalid/", "o", content=content)
        assert await load(source, None, client, max_bytes=1) is content
        problem = SourceFailed("why", kind="broken")
        with pytest.raises(SourceFailed, match="why"):
            await load(Source("u", "o", problem=problem), None, client, max_bytes=1)


async def test_a_page_that_is_unchanged_is_not_sent_again(loop: Any) -> None:
    async with FlakyApi(Faults(seed=1)) as api, opened() as client:
        source = at(f"{api.url}/etag/1")
        first = await load(source, None, client, max_bytes=1 << 20)
        assert first is not None
        assert first.etag
        assert first.last_modified
        known = State(first.digest, Versions(), 1, first.etag, first.last_modified)
        assert await load(source, known, client, max_bytes=1 << 20) is None
        await client.put(source.uri)
        second = await load(source, known, client, max_bytes=1 << 20)
        assert second is not None
        assert second.digest != first.digest


async def test_what_a_server_says_of_a_page_is_kept(loop: Any) -> None:
    async def page(request: web.Request) -> web.Response:
        headers = {"Content-Type": "Text/HTML; Charset=Latin-1", "ETag": '"v1"'}
        return web.Response(body=b"<p>caf\xe9", headers=headers)

    async with serving(page) as base, opened() as client:
        content = await load(at(base), None, client, max_bytes=100)
    assert content is not None
    assert (content.media_type, content.charset, content.etag) == ("text/html", "Latin-1", '"v1"')
    assert content.last_modified is None


@pytest.mark.parametrize(
    ("status", "kind", "gone"),
    [
        (404, "not found", True),
        (410, "not found", True),
        (401, "refused", False),
        (403, "refused", False),
        (429, "refused", False),
        (418, "refused", False),
        (408, "timed out", False),
        (500, "server error", False),
        (503, "server error", False),
        (300, "broken", False),
        (304, "broken", False),
    ],
)
async def test_each_status_has_its_cause(loop: Any, status: int, kind: str, gone: bool) -> None:
    async def page(request: web.Request) -> web.Response:
        return web.Response(status=status)

    async with serving(page) as base:
        failed = await cause(at(base))
    assert (failed.kind, failed.gone) == (kind, gone)
    assert f"HTTP {status}" in str(failed)


async def test_a_huge_page_ends_early(loop: Any) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * (1 << 16))
                sent += 1 << 16
        except ConnectionError:
            pass
        return response

    async with serving(endless) as base:
        failed = await cause(at(base), max_bytes=1 << 20)
    assert failed.kind == "too large"
    assert sent < 16 << 20


async def test_a_page_of_an_allowed_size_for_the_client_may_be_too_large_for_this(loop: Any) -> None:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text="x" * 200)

    async with serving(page) as base, opened() as client:
        with pytest.raises(SourceFailed, match="larger than 100 bytes"):
            await load(at(base), None, client, max_bytes=100)


async def test_a_bomb_does_not_go_off(loop: Any) -> None:
    async with FlakyApi(Faults(seed=1)) as api:
        tracemalloc.start()
        failed = await cause(at(f"{api.url}/gzip-bomb?mib=200"), max_bytes=2 << 20)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert failed.kind == "too large"
    assert peak < 48 << 20


async def test_redirects_without_end_are_said(loop: Any) -> None:
    async with FlakyApi(Faults(seed=1)) as api:
        failed = await cause(at(f"{api.url}/redirect/loop"))
    assert failed.kind == "broken"
    assert "redirects" in str(failed)


async def test_a_server_that_is_not_there_or_says_nothing_is_said(loop: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        failed = await cause(at(f"http://127.0.0.1:{unused.getsockname()[1]}/"))
        assert failed.kind == "unreachable"

    done = asyncio.Event()

    async def silent(request: web.Request) -> web.Response:
        await done.wait()
        return web.Response()

    async with serving(silent) as base:
        assert (await cause(at(base), timeout=0.2)).kind == "timed out"
        done.set()


async def test_credentials_are_used_and_never_shown(loop: Any) -> None:
    async def page(request: web.Request) -> web.Response:
        authorised = request.headers.get("Authorization") == "Basic YW5uOnNlY3JldHB3"
        return web.Response(status=200 if authorised and request.path == "/ok" else 403)

    async with serving(page) as base, opened() as client:
        location = base.replace("//", "//ann:secretpw@")
        assert (
            await load(Source(f"{base}/ok", "o", location=f"{location}/ok"), None, client, max_bytes=1)
            is not None
        )
        with pytest.raises(SourceFailed) as failed:
            await load(Source(f"{base}/no", "o", location=f"{location}/no"), None, client, max_bytes=1)
        assert "secretpw" not in str(failed.value)


async def test_a_scheme_that_is_not_the_webs_is_said(loop: Any) -> None:
    failed = await cause(at("ftp://example.org/a"))
    assert failed.kind == "not a URL"
    assert "ftp" in str(failed)
