"""What is listed of what is named: files, lists, sitemaps, JSON Lines; and what cannot be listed."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unwait.documents import jsonl, sitemap
from unwait.documents.model import Failure, Source, SourceFailed
from unwait.documents.names import Seen
from unwait.documents.sources import Listing
from unwait.web.client import Client

from .server_support import serving

Answers = dict[str, Any]
Serve = Callable[[Answers], AbstractAsyncContextManager[str]]


@pytest.fixture
def serve() -> Serve:
    """`async with serve({path: body or (status, body)}) as base`: a server whose `{base}` in bodies is its address."""

    @asynccontextmanager
    async def running(answers: Answers) -> AsyncIterator[str]:
        async def answer(request: web.Request) -> web.Response:
            found = answers.get(request.path_qs, (404, b""))
            status, body = found if isinstance(found, tuple) else (200, found)
            if isinstance(body, str):
                body = body.replace("{base}", base).encode()
            return web.Response(status=status, body=body)

        async with serving(answer) as base:
            yield base

    return running


def make(directory: Path, *files: str) -> None:
    for name in files:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")


async def listed(*named: Any, **options: Any) -> tuple[list[Source], Listing]:
    async with Client(retry=0, max_bytes=options.get("max_bytes", 50 << 20)) as client:
        listing = Listing(named, client, **options)
        return [source async for source in listing], listing


def problems(sources: Iterable[Source]) -> list[tuple[str, str]]:
    return [(source.uri, source.problem.kind) for source in sources if source.problem is not None]


def uris(sources: Iterable[Source]) -> list[str]:
    return [source.uri for source in sources]


async def failures(*found: Failure) -> AsyncIterator[Failure]:
    for failure in found:
        yield failure


def failure(uri: str, origin: str) -> Failure:
    return Failure(uri, origin, "load", "broken", "…")


# Files.


async def test_files_and_directories_are_listed_in_order(loop: Any, tmp_path: Path) -> None:
    make(tmp_path, "b.md", "a.md", "sub/c.md", "other.txt")
    sources, listing = await listed(tmp_path / "other.txt", str(tmp_path))
    assert uris(sources) == [str(tmp_path / name) for name in ("other.txt", "a.md", "b.md", "sub/c.md")]
    assert sources[0].origin == sources[0].path == str(tmp_path / "other.txt")
    assert {source.origin for source in sources[1:]} == {str(tmp_path)}
    assert listing.origins == listing.complete == {str(tmp_path)}


async def test_a_relative_name_is_made_absolute(
    loop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "docs/a.md", "docs/b.txt")
    monkeypatch.chdir(tmp_path)
    sources, listing = await listed("docs/../docs/a.md", "docs/*.txt", "./docs/")
    assert uris(sources) == [str(tmp_path / "docs/a.md"), str(tmp_path / "docs/b.txt")]
    assert [source.origin for source in sources] == [
        str(tmp_path / "docs/a.md"),
        str(tmp_path / "docs/*.txt"),
    ]
    assert listing.complete == {str(tmp_path / "docs/*.txt"), str(tmp_path / "docs")}


async def test_what_does_not_exist_is_a_problem_and_the_rest_goes_on(loop: Any, tmp_path: Path) -> None:
    make(tmp_path, "a.md")
    sources, listing = await listed(
        tmp_path / "none.md",
        f"{tmp_path}/*.pdf",
        "",
        f"{tmp_path}/a\0b",
        "ftp://host/x",
        "http://",
        tmp_path / "a.md",
    )
    kinds = [source.problem and source.problem.kind for source in sources]
    assert kinds == ["not found", "not found", "not found", "broken", "not a URL", "not a URL", None]
    assert sources[0].problem is not None
    assert sources[0].problem.gone
    assert listing.origins - listing.complete == {f"{tmp_path}/*.pdf"}


async def test_a_file_whose_name_looks_like_a_pattern_is_that_file(loop: Any, tmp_path: Path) -> None:
    make(tmp_path, "a[1].md", "a1.md")
    sources, _ = await listed(f"{tmp_path}/a[1].md")
    assert uris(sources) == [f"{tmp_path}/a[1].md"]


async def test_a_pattern_in_a_directory_that_looks_like_one(
    loop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "[x]/a.md", "x/b.md")
    monkeypatch.chdir(tmp_path / "[x]")
    sources, _ = await listed("*.md", "../x/./*.md")
    assert uris(sources) == [f"{tmp_path}/[x]/a.md", f"{tmp_path}/x/b.md"]


async def test_the_same_file_is_listed_once(loop: Any, tmp_path: Path) -> None:
    make(tmp_path, "a.md", "b.md")
    sources, _ = await listed(tmp_path / "b.md", tmp_path, tmp_path / "a.md", f"{tmp_path}/*.md")
    assert uris(sources) == [str(tmp_path / "b.md"), str(tmp_path / "a.md")]


async def test_nothing_special_is_ever_opened(loop: Any, tmp_path: Path) -> None:
    make(tmp_path, "a.md")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link-to-pipe").symlink_to("pipe")
    os.mkfifo(tmp_path / "sub.jsonl")
    sources, _ = await listed(tmp_path, tmp_path / "pipe", "/dev/null")
    assert uris(sources) == [str(tmp_path / "a.md"), str(tmp_path / "pipe"), "/dev/null"]
    assert problems(sources) == [(str(tmp_path / "pipe"), "not a file"), ("/dev/null", "not a file")]


async def test_links_to_files_are_followed_and_loops_are_not(loop: Any, tmp_path: Path) -> None:
    make(tmp_path, "docs/a.md", "elsewhere/b.md")
    (tmp_path / "docs/loop").symlink_to("..")
    (tmp_path / "docs/self").symlink_to("self")
    (tmp_path / "docs/b.md").symlink_to(tmp_path / "elsewhere/b.md")
    (tmp_path / "docs/broken.md").symlink_to("nothing")
    (tmp_path / "named").symlink_to("docs")
    sources, _ = await listed(tmp_path / "named")
    names = [os.path.relpath(source.uri, tmp_path) for source in sources]
    assert names == ["named/a.md", "named/b.md", "named/broken.md", "named/self"]
    assert [kind for _, kind in problems(sources)] == ["not found", "broken"]


async def test_a_directory_that_cannot_be_read_leaves_its_origin_incomplete(
    loop: Any, tmp_path: Path
) -> None:
    # A path that is too long is one that root may not read either.
    make(tmp_path, "a.md", "z.md")
    deep = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 240, dir_fd=deep)
        below = os.open("d" * 240, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    sources, listing = await listed(tmp_path)
    assert [os.path.basename(source.uri) for source in sources if source.problem is None] == ["a.md", "z.md"]
    assert [kind for _, kind in problems(sources)] == ["broken"]
    assert listing.origins == {str(tmp_path)}
    assert listing.complete == set()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_permission_denied_is_a_problem(loop: Any, tmp_path: Path) -> None:
    make(tmp_path, "a.md", "closed/b.md")
    (tmp_path / "closed").chmod(0)
    sources, listing = await listed(tmp_path)
    (tmp_path / "closed").chmod(0o700)
    assert problems(sources) == [(str(tmp_path / "closed"), "refused")]
    assert not listing.complete


async def test_names_that_are_not_utf_8_have_a_uri_that_is(loop: Any, tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.md"
    with open(raw, "wb"):
        pass
    (source,), _ = await listed(tmp_path)
    assert source.uri == f"{tmp_path}/caf\\xe9.md"
    assert source.path is not None
    assert os.fsencode(source.path) == raw
    # It is found again by that.
    (again,), _ = await listed(again=failures(failure(source.uri, str(tmp_path))))
    assert (again.path, again.origin) == (source.path, str(tmp_path))


async def test_ten_thousand_files_are_listed_lazily_and_the_loop_goes_on(loop: Any, tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"{number:05}.md").touch()
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    turning = asyncio.create_task(turn())
    async with Client() as client:
        listing = Listing([tmp_path], client)
        tracemalloc.start()
        count = 0
        async for source in listing:
            assert source.uri == f"{tmp_path}/{count:05}.md"
            count += 1
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    turning.cancel()
    await asyncio.gather(turning, return_exceptions=True)
    assert count == 10_000
    # The names of the directory, 8 bytes of each that came before, and a batch.
    assert peak < 4 << 20
    assert turns > 20


async def test_a_listing_that_is_given_up_leaves_nothing_running(loop: Any, tmp_path: Path) -> None:
    make(tmp_path, *(f"{number}/{number}.md" for number in range(600)))
    async with Client() as client:
        async with aclosing(aiter(Listing([tmp_path], client))) as sources:
            first = await anext(sources)
        assert first.uri.endswith("0/0.md")
        assert asyncio.all_tasks() == {asyncio.current_task()}


def test_eight_bytes_of_each_are_kept() -> None:
    seen = Seen()
    tracemalloc.start()
    for number in range(50_000):
        assert seen.add(f"https://example.org/{number}")
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / 50_000 < 24  # the shards themselves, too
    assert not seen.add("https://example.org/7")
    assert "https://example.org/49999" in seen
    assert "https://example.org/50000" not in seen


# Lists.


async def test_a_list_on_standard_input_names_sources(loop: Any, tmp_path: Path) -> None:
    make(tmp_path, "a.md", "docs/b.md")
    text = f"# what is wanted\n\n{tmp_path}/a.md\r\n  {tmp_path}/docs\nhttps://example.org/x\n-\n"
    sources, _ = await listed("-", stdin=io.StringIO(text))
    expected = [f"{tmp_path}/a.md", f"{tmp_path}/docs/b.md", "https://example.org/x"]
    assert uris(sources)[:3] == expected
    assert len(sources) == 4
    assert sources[3].problem is not None


async def test_a_list_is_read_as_it_comes(loop: Any, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin:
        async with Client() as client, aclosing(aiter(Listing(["-"], client, stdin=stdin))) as sources:
            os.write(writing, b"https://example.org/1\nhttps://exam")
            assert (await anext(sources)).uri == "https://example.org/1"
            waiting = asyncio.ensure_future(anext(sources))
            await asyncio.sleep(0)
            assert not waiting.done()
            os.write(writing, b"ple.org/2\n")
            assert (await waiting).uri == "https://example.org/2"
            # More than a pipe holds.
            written = asyncio.create_task(asyncio.to_thread(os.write, writing, b"x" * 100_000 + b"\n"))
            too_long = await anext(sources)
            await written
            os.close(writing)
            assert too_long.problem is not None
            assert too_long.problem.kind == "too large"
            assert await anext(sources, None) is None


# URLs.


async def test_a_url_has_a_uri_without_its_secrets(loop: Any) -> None:
    sources, _ = await listed(
        "http://ann:pw@Example.org#top",
        "http://example.org/",
        "http://example.org/?token=one",
        "http://example.org/?token=two",
        "http://example.org?q=1&b=%41&flag&c=a+b%2B#x",
    )
    assert sources[0].uri == "http://example.org/"
    assert sources[0].location == "http://ann:pw@example.org/"
    assert sources[1].uri.startswith("http://example.org/?token=***#")
    assert sources[1].uri != sources[2].uri
    assert sources[1].location == "http://example.org/?token=one"
    assert (sources[3].uri, sources[3].location) == ("http://example.org/?q=1&b=A&flag&c=a+b%2B", None)
    assert len(sources) == 4
    assert "pw" not in "".join(source.uri + source.origin for source in sources)


# JSON Lines.


async def test_each_line_is_a_source(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"id": "a", "text": "one", "lang": "en", "n": 3, "ok": true, "tags": ["x"], "big": 1e999, '
        + b'"long": "'
        + b"y" * 501
        + b'"}\r\n'
        b"\n"
        b'{"text": "no id"}\n'
        b'{"id": 7, "text": "number"}\n'
        b'{"id": "a", "text": "again"}\n'
        b"[1]\n"
        b"{broken\n"
        b'{"id": "\xff"}\n'
        b'{"id": "nul\\u0000 half\\ud800"}\n'
        b'{"x": NaN}\n' + b"[" * 100_000 + b"\n" + b'{"id": "last"}'
    )
    sources, listing = await listed(path)
    file = str(path)
    assert uris(sources) == [
        f"{file}#{name}"
        for name in (
            "a",
            "line 3",
            "7",
            "a (line 5)",
            "line 6",
            "line 7",
            "line 8",
            "nul\\x00 half\\ud800",
            "line 10",
            "line 11",
            "last",
        )
    ]
    assert [number for number, source in enumerate(sources) if source.problem] == [3, 4, 5, 6, 8, 9]
    first = sources[0]
    assert first.content is not None
    assert first.content.media_type == "application/jsonl-line"
    assert json.loads(first.content.body)["text"] == "one"
    assert first.metadata == {"lang": "en", "n": 3, "ok": True}
    assert {source.origin for source in sources} == {file}
    assert listing.origins == {file}
    assert not listing.complete


async def test_a_whole_file_of_lines_is_complete(loop: Any, tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_text('{"id": 1, "body": "x"}\n')
    (tmp_path / "sniffed.txt").write_text('{"id": 1}\n\n{"id": 2}\n')
    (tmp_path / "one.json").write_text('{"id": 1}\n')
    (tmp_path / "pretty.json").write_text('{\n"id": 1\n}\n')
    sources, listing = await listed(tmp_path, text_field="body")
    names = ["a.ndjson#1", "one.json", "pretty.json", "sniffed.txt#1", "sniffed.txt#2"]
    assert uris(sources) == [f"{tmp_path}/{name}" for name in names]
    assert sources[0].metadata == {}
    assert listing.complete == listing.origins == {str(tmp_path)}


async def test_a_line_that_is_too_long_is_never_held(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"id": 1}\n{"id": 2, "text": "')
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"id": 3}\n' + b" " * 2000)
    tracemalloc.start()
    sources, _ = await listed(path, max_bytes=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    assert [source.uri.rpartition("#")[2] for source in sources] == ["1", "line 2", "3", "line 4"]
    assert [kind for _, kind in problems(sources)] == ["too large", "too large"]


async def test_lines_of_a_url_are_downloaded_once(loop: Any, serve: Serve) -> None:
    answers = {
        "/a.jsonl": '{"id": "x", "text": "t"}\n{"text": "u"}',
        "/gone.jsonl": (410, ""),
        "/bad.jsonl": (500, ""),
    }
    async with serve(answers) as base:
        sources, listing = await listed(f"{base}/a.jsonl", f"{base}/gone.jsonl", f"{base}/bad.jsonl")
    assert uris(sources)[:2] == [f"{base}/a.jsonl#x", f"{base}/a.jsonl#line 2"]
    assert all(source.content is not None and source.path is None for source in sources[:2])
    assert problems(sources) == [(f"{base}/gone.jsonl", "not found"), (f"{base}/bad.jsonl", "server error")]
    assert listing.complete == {f"{base}/a.jsonl", f"{base}/gone.jsonl"}


# Sitemaps.

NAMESPACE = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'


def urlset(*locations: str) -> str:
    rows = "".join(f"<url><loc>\n {location} </loc><lastmod>2026</lastmod></url>" for location in locations)
    return f'<?xml version="1.0" encoding="UTF-8"?><urlset {NAMESPACE}>{rows}</urlset>'


def index(*locations: str) -> str:
    rows = "".join(f"<sitemap><loc>{location}</loc></sitemap>" for location in locations)
    return f"<sitemapindex {NAMESPACE}>{rows}</sitemapindex>"


async def test_a_sitemap_lists_its_pages(loop: Any, serve: Serve) -> None:
    image = '<image:image xmlns:image="i"><image:loc>http://x/no.png</image:loc></image:image>'
    text = urlset("{base}/a", "{base}/b?x=1&amp;y=2", "{base}/a", "/relative").replace(
        "</url>", image + "</url>"
    )
    async with serve({"/sitemap.xml": text}) as base:
        sources, listing = await listed(f"{base}/sitemap.xml")
        assert uris(sources) == [f"{base}/a", f"{base}/b?x=1&y=2", f"{base}/relative"]
        assert {source.origin for source in sources} == {f"{base}/sitemap.xml"} == listing.complete
        chosen, _ = await listed(f"{base}/sitemap.xml", exclude=["a"], include=["[ab]"])
        assert uris(chosen) == [f"{base}/b?x=1&y=2"]


async def test_an_index_of_compressed_sitemaps_lists_all_pages_in_order(loop: Any, serve: Serve) -> None:
    answers: Answers = {}
    async with serve(answers) as base:
        answers["/sitemap_index.xml"] = index(
            *(f"{base}/{n}.xml.gz" for n in range(3)), f"{base}/0.xml.gz", f"{base}/sitemap_index.xml"
        )
        for number in range(3):
            pages = [f"{base}/{number}/{page}" for page in range(300)]
            answers[f"/{number}.xml.gz"] = gzip.compress(urlset(*pages).encode())
        sources, listing = await listed(f"{base}/sitemap_index.xml")
        assert uris(sources) == [f"{base}/{number}/{page}" for number in range(3) for page in range(300)]
        assert listing.complete == {f"{base}/sitemap_index.xml"}


async def test_what_is_wrong_with_a_sitemap_is_said_and_the_rest_goes_on(loop: Any, serve: Serve) -> None:
    pages = urlset("{base}/good")
    answers: Answers = {
        "/sitemap.xml": index(
            *("{base}/" + n for n in ("none.xml", "cut.xml", "html.xml", "cut.gz", "good.xml"))
        ),
        "/cut.xml": urlset("{base}/before")[:-9],
        "/html.xml": "<html></html>",
        "/cut.gz": gzip.compress(b"<urlset/>")[:-4],
        "/good.xml": pages,
    }
    async with serve(answers) as base:
        sources, listing = await listed(f"{base}/sitemap.xml")
        good = [source.uri for source in sources if source.problem is None]
        assert good == [f"{base}/before", f"{base}/good"]
        kinds = dict(problems(sources))
        assert kinds == {
            f"{base}/none.xml": "not found",
            f"{base}/cut.xml": "broken",
            f"{base}/html.xml": "broken",
            f"{base}/cut.gz": "broken",
        }
        assert not listing.complete
        # What failed is listed again, as part of what it was part of.
        answers["/none.xml"] = urlset("{base}/late")
        again, listing = await listed(again=failures(failure(f"{base}/none.xml", f"{base}/sitemap.xml")))
        assert [(source.uri, source.origin) for source in again] == [(f"{base}/late", f"{base}/sitemap.xml")]
        assert not listing.complete


LAUGHS = (
    '<!DOCTYPE urlset [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(12))
    + "]><urlset><url><loc>http://x/&m;</loc></url></urlset>"
)


@pytest.mark.parametrize(
    "content",
    [
        LAUGHS.encode(),
        b'<!DOCTYPE urlset SYSTEM "file:///etc/passwd"><urlset/>',
        gzip.compress(b"<urlset>" + b" " * (40 << 20) + b"</urlset>"),
        b"<urlset><url><loc>http://x/" + b"a" * 100_000 + b"</loc></url></urlset>",
        b"<urlset><" + b"a" * (4 << 20),
    ],
    ids=["laughs", "external", "bomb", "address", "tag"],
)
async def test_a_sitemap_made_to_hurt_is_refused(
    loop: Any, serve: Serve, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "sitemap.xml").write_bytes(content)
    async with serve({"/sitemap.xml": content}) as base:
        started = time.process_time()
        tracemalloc.start()
        sources, listing = await listed(f"{base}/sitemap.xml", tmp_path / "sitemap.xml", max_bytes=20 << 20)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert {kind for _, kind in problems(sources)} <= {"broken", "too large"}
        assert len(problems(sources)) == len(sources) == 2
        assert not listing.complete
        assert peak < 32 << 20
        assert time.process_time() - started < 5


async def test_sitemaps_nest_to_a_bounded_depth(loop: Any, serve: Serve) -> None:
    answers = {f"/{n}.xml": index(f"{{base}}/{n + 1}.xml") for n in range(10)}
    async with serve(answers) as base:
        sources, listing = await listed(f"{base}/0.xml")
        assert problems(sources) == [(f"{base}/4.xml", "too large")]
        assert not listing.complete


async def test_a_sitemap_in_a_file_is_one_and_other_xml_is_not(
    loop: Any, serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "sitemap.xml.gz").write_bytes(gzip.compress(urlset("http://x/1", "ftp://x/2").encode()))
    (tmp_path / "book.xml").write_text('<!DOCTYPE book [<!ENTITY a "b">]><book>&a;</book>')
    sources, listing = await listed(tmp_path / "sitemap.xml.gz", tmp_path / "book.xml")
    assert uris(sources) == ["http://x/1", "ftp://x/2", str(tmp_path / "book.xml")]
    assert problems(sources) == [("ftp://x/2", "not a URL")]
    assert listing.complete == {str(tmp_path / "sitemap.xml.gz")}
    async with serve({"/feed.xml": "<rss/>"}) as base:
        (source,), listing = await listed(f"{base}/feed.xml")
        # What was downloaded to look at it is not downloaded again.
        assert source.content is not None
        assert source.content.body == b"<rss/>"
        assert not listing.origins


async def test_a_sitemap_with_a_password_shares_it_with_its_own_site(loop: Any, serve: Serve) -> None:
    async with serve({"/sitemap.xml": urlset("{base}/a", "http://other.example/b")}) as base:
        sources, _ = await listed(base.replace("//", "//ann:pw@") + "/sitemap.xml")
        assert uris(sources) == [f"{base}/a", "http://other.example/b"]
        assert [source.location for source in sources] == [base.replace("//", "//ann:pw@") + "/a", None]
        assert sources[0].origin == f"{base}/sitemap.xml"


_TAGS = (
    "<urlset> <url> <loc> </loc> </url> </urlset> <sitemapindex> <sitemap> &amp; &x; < ]> <![CDATA[ ]]> \0"
)
TAGS = [*_TAGS.split(), "http://x/"]
HEADS = ["<!DOCTYPE urlset [", "<?xml version='1.0' encoding='utf-16'?>"]
XML = st.lists(st.sampled_from(TAGS + HEADS), max_size=12).map(lambda parts: "".join(parts).encode())


@given(XML | st.binary(max_size=60) | XML.map(gzip.compress) | XML.map(lambda data: gzip.compress(data)[:-3]))
def test_no_content_breaks_the_reading_of_sitemaps(content: bytes) -> None:
    assert sitemap.is_sitemap(sitemap.blocks_of(content)) in (True, False)
    *entries, _ = [*sitemap.read(sitemap.blocks_of(content), 1000), None]
    assert all(entry is None or isinstance(entry, sitemap.Entry | SourceFailed) for entry in entries)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
)
OBJECTS = st.dictionaries(st.sampled_from(["id", "text", "x", "\ud800"]), VALUES, max_size=4)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(OBJECTS.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20), max_size=6))
def test_no_content_breaks_the_reading_of_lines(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "any.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = [item for item in jsonl.read(str(path), "u", "o", "text", 15, None) if item is not None]
    whole = path.read_bytes().split(b"\n")
    assert [number for number, _ in found] == [
        number
        for number, line in enumerate(whole, 1)
        if line.removeprefix(b"\xef\xbb\xbf").strip() or len(line) > 15
    ]
    for number, source in found:
        source.uri.encode()
        json.dumps(dict(source.metadata), allow_nan=False)
        assert (source.problem is None) == (source.content is not None)
        if len(whole[number - 1]) > 15:
            assert source.problem is not None
            assert source.problem.kind == "too large"


# Again.


async def test_what_failed_is_listed_again_and_nothing_else(loop: Any, tmp_path: Path) -> None:
    make(tmp_path, "a.md", "b.md", "has#mark.md", "sub/c.md", "sub/d.log")
    (tmp_path / ".gitignore").write_text("*.log")
    lines = tmp_path / "x#y.jsonl"
    lines.write_text("".join(f'{{"id": "{name}"}}\n' for name in ("p", "q#r", "s", "s")))
    origin = str(tmp_path)
    found = [f"{tmp_path}/{name}" for name in ("a.md", "has#mark.md", "none.md", "sub")]
    found += [f"{lines}#{name}" for name in ("q#r", "s (line 4)")]
    found += ["http://x/page", "http://x/?key=***#0123456789abcdef"]
    sources, listing = await listed(
        tmp_path / "b.md", lines, again=failures(*(failure(uri, origin) for uri in found))
    )
    names = [source.uri.removeprefix(origin + "/") for source in sources]
    assert names == [
        *("a.md", "has#mark.md", "none.md", "sub/c.md", "x#y.jsonl#q#r", "x#y.jsonl#s (line 4)"),
        *("http://x/page", "http://x/?key=***#0123456789abcdef", "b.md", "x#y.jsonl#p", "x#y.jsonl#s"),
    ]
    assert {source.origin for source in sources[:8]} == {origin}
    assert [kind for _, kind in problems(sources)] == ["not found", "broken", "refused"]
    assert origin not in listing.complete


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="crawl"):
        Listing([], Client(), crawl=-1)
    with pytest.raises(TypeError, match="one name"):
        Listing("docs", Client())
