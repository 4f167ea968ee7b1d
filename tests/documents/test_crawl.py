"""Crawls of real local sites, and what robots.txt says."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from docs_server import make_app
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from unwait.documents import crawl, robots
from unwait.documents.model import Content, Source
from unwait.documents.sources import Listing
from unwait.web.client import Client

from .server_support import running, serving

Answer = str | web.Response | Callable[[web.Request], Any]


@dataclass
class Site:
    """A site of pages by path; a page that is text is HTML, `{base}` in it the site's address."""

    pages: Mapping[str, Any]
    base: str = ""
    asked: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0
    _now: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        self.times.append(asyncio.get_running_loop().time())
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            page = self.pages.get(request.path_qs)
            if callable(page):
                page = await page(request)
            if page is None:
                return web.Response(status=404)
            if isinstance(page, int):
                return web.Response(status=page)
            if isinstance(page, str):
                kind = "text/plain" if request.path.endswith(".txt") else "text/html"
                return web.Response(text=page.replace("{base}", self.base), content_type=kind)
            return page  # type: ignore[no-any-return]
        finally:
            self._now -= 1

    def counts(self) -> Counter[str]:
        return Counter(self.asked)


@asynccontextmanager
async def site_of(pages: Mapping[str, Any]) -> AsyncIterator[Site]:
    site = Site(pages)
    async with serving(site.answer) as site.base:
        yield site


def client() -> AbstractAsyncContextManager[Client]:
    return Client(retry=0, breaker=False)


async def crawled(*named: str, depth: int = 5, **options: Any) -> tuple[list[Source], Listing]:
    async with client() as opened:
        listing = Listing(named, opened, crawl=depth, **options)
        return [source async for source in listing], listing


def links(*targets: str, head: str = "") -> str:
    return f"<html><head>{head}</head><body>" + "".join(f'<a href="{target}">x</a>' for target in targets)


def found(sources: list[Source], site: Site) -> list[str]:
    return sorted(source.uri.removeprefix(site.base) for source in sources if source.problem is None)


def problems(sources: list[Source], site: Site) -> dict[str, str]:
    return {source.uri.removeprefix(site.base): source.problem.kind for source in sources if source.problem}


async def test_a_site_is_crawled_to_its_depth_each_page_once(loop: Any) -> None:
    pages = {
        "/": links("1", "/2", "{base}/1#part", "?", ""),
        "/1": links("/", "/1a", "/2"),
        "/2": links("/1", "/2a"),
        "/1a": links("/deep"),
        "/2a": "",
        "/deep": "",
    }
    async with site_of(pages) as site:
        sources, listing = await crawled(site.base, depth=2)
        assert found(sources, site) == ["/", "/1", "/1a", "/2", "/2a"]
        assert all(count == 1 for count in site.counts().values())
        assert {source.origin for source in sources} == {f"{site.base}/"} == listing.complete
        bodies = {source.uri: source.content for source in sources}
        content = bodies[f"{site.base}/2a"]
        assert content is not None
        assert (content.body, content.media_type) == (b"", "text/html")
        sources, _ = await crawled(f"{site.base}/", depth=1 << 40)
        assert found(sources, site) == sorted(pages)
        sources, _ = await crawled(f"{site.base}/", depth=0)
        assert found(sources, site) == ["/"]


async def test_a_crawl_stays_within_its_prefix(loop: Any) -> None:
    outside = ["/private", "/docs/../private", "/docs/%2e%2e/private", "../private", "/doc", "/docsx/a"]
    others = [
        "http://other.invalid/docs/x",
        "https://127.0.0.1/docs/x",
        "mailto:a@b",
        "javascript:x()",
        "ftp://x/docs/",
    ]
    pages = {
        "/docs/index.html": links(
            "a", "sub/b", "//127.0.0.1:1/docs/", *outside, *others, "http://[", "pic.PNG"
        ),
        "/docs/a": "",
        "/docs/sub/b": links("../index.html", "../../docs/c"),
        "/docs/c": "",
    }
    async with site_of(pages) as site:
        sources, _ = await crawled(f"{site.base}/docs/index.html")
        assert found(sources, site) == ["/docs/a", "/docs/c", "/docs/index.html", "/docs/sub/b"]
        assert not problems(sources, site)
        assert set(site.asked) == {"/robots.txt", *pages}


async def test_a_page_says_what_of_it_may_be_used(loop: Any) -> None:
    header = web.Response(
        text=links("/from-header"), content_type="text/html", headers={"X-Robots-Tag": "nofollow"}
    )
    other = {"X-Robots-Tag": "otherbot: noindex, nofollow"}
    pages = {
        "/": links("/noindex", "/nofollow", "/none", "/header", "/pdf", "/other", "/based", "/area")
        + '<a rel="external NoFollow" href="/rel">',
        "/noindex": links("/linked", head='<meta name="Robots" content="NOINDEX, follow">'),
        "/linked": "",
        "/nofollow": links("/not-1", head='<meta name="unwait" content="nofollow">'),
        "/none": links("/not-2", head='<meta name="robots" content="none">'),
        "/header": header,
        "/pdf": web.Response(
            body=b"%PDF", content_type="application/pdf", headers={"X-Robots-Tag": "noindex"}
        ),
        "/other": web.Response(text=links("/ok"), content_type="text/html", headers=other),
        "/ok": "",
        "/based": links("x", head='<base href="/folder/">'),
        "/folder/x": "",
        "/area": '<map><area href=" /mapp\ned "></map>',
        "/mapped": "",
        "/rel": "",
    }
    async with site_of(pages) as site:
        sources, listing = await crawled(site.base)
        assert found(sources, site) == [
            *(
                "/",
                "/area",
                "/based",
                "/folder/x",
                "/header",
                "/linked",
                "/mapped",
                "/nofollow",
                "/ok",
                "/other",
            )
        ]
        assert not problems(sources, site)
        assert listing.complete


async def test_robots_txt_is_asked_once_and_respected(loop: Any) -> None:
    pages = {
        "/robots.txt": "User-agent: *\nDisallow: /secret\nAllow: /secret/open$\nDisallow: /*?sort=",
        "/a/": links("/a/b", "/a/?sort=1", "/secret/a"),
        "/a/b": "",
        "/secret/": links("open", "closed"),
        "/secret/open": links("closed"),
    }
    async with site_of(pages) as site:
        sources, listing = await crawled(
            f"{site.base}/a/", f"{site.base}/secret/", f"{site.base}/secret/open"
        )
        assert found(sources, site) == ["/a/", "/a/b", "/secret/open"]
        assert problems(sources, site) == {"/secret/": "refused"}
        assert site.counts() == Counter(["/robots.txt", "/a/", "/a/b", "/secret/open"])
        assert listing.origins - listing.complete == {f"{site.base}/secret/"}


@pytest.mark.parametrize(("status", "allowed"), [(404, True), (403, True), (500, False), (503, False)])
async def test_a_robots_txt_that_fails(loop: Any, status: int, allowed: bool) -> None:
    async with site_of({"/robots.txt": status, "/": "text"}) as site:
        sources, listing = await crawled(site.base)
        assert found(sources, site) == (["/"] if allowed else [])
        assert problems(sources, site) == ({} if allowed else {"/": "server error"})
        assert bool(listing.complete) is allowed
        if not allowed:
            assert "robots.txt" in str(sources[0].problem)


async def test_few_requests_at_once_and_the_crawl_delay_is_kept(loop: Any) -> None:
    gate = asyncio.Event()
    arrived = 0

    async def page(request: web.Request) -> str:
        nonlocal arrived
        arrived += 1
        if arrived == crawl.AT_ONCE:
            gate.set()
        await gate.wait()
        return "text"

    pages: dict[str, Any] = {f"/{number}": page for number in range(20)}
    pages["/"] = links(*pages)
    async with site_of(pages) as site:
        sources, _ = await crawled(site.base)
        assert len(sources) == 21
        assert site.most_at_once == crawl.AT_ONCE
        pages = {
            "/robots.txt": "user-agent: unwait\ncrawl-delay: 0.05",
            "/": links("/1", "/2", "/3"),
            "/1": "",
            "/2": "",
        }
        site.pages = pages
        site.times.clear()
        started = loop.time()
        await crawled(site.base)
        # After robots.txt: no page before its turn.
        assert len(site.times) == 5
        assert all(at - started > 0.05 * turn - 0.002 for turn, at in enumerate(site.times[1:]))


async def test_pages_that_fail_are_said_and_the_rest_goes_on(loop: Any) -> None:
    pages = {"/": links("/gone", "/closed", "/good"), "/closed": 403, "/good": ""}
    async with site_of(pages) as site:
        sources, listing = await crawled(site.base)
        assert found(sources, site) == ["/", "/good"]
        assert problems(sources, site) == {"/gone": "not found", "/closed": "refused"}
        assert not listing.complete
        del pages["/closed"]
        _, listing = await crawled(site.base)
        # A page that is gone hides no other.
        assert listing.complete == {f"{site.base}/"}
        sources, listing = await crawled(f"{site.base}/nothing/")
        assert problems(sources, site) == {"/nothing/": "not found"}
        assert not listing.complete


def to(target: str) -> Callable[[web.Request], Any]:
    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": target})

    return redirect


async def test_redirects_are_followed_within_the_site_only(loop: Any) -> None:
    async with site_of({"/docs/secret": "other", "/start/": links("/start/x"), "/start/x": ""}) as other:
        pages: dict[str, Any] = {
            "/docs/": links("/docs/moved", "/docs/out", "/docs/away", "/docs/new"),
            "/docs/moved": to("/docs/new"),
            "/docs/new": links("relative"),
            "/docs/relative": "",
            "/docs/out": to("/private"),
            "/docs/away": to(f"{other.base}/docs/secret"),
            "/private": "private",
            "/elsewhere": to(f"{other.base}/start/"),
            "/blocked": to(f"{other.base}/start/"),
        }
        async with site_of(pages) as site:
            sources, _ = await crawled(f"{site.base}/docs/")
            assert found(sources, site) == ["/docs/", "/docs/new", "/docs/relative"]
            assert not problems(sources, site)
            # Where the start leads is where the site is, as that site allows.
            sources, listing = await crawled(f"{site.base}/elsewhere")
            assert found(sources, other) == ["/start/", "/start/x"]
            assert {source.origin for source in sources} == {f"{site.base}/elsewhere"} == listing.complete
            other.pages = {**other.pages, "/robots.txt": "user-agent: *\ndisallow: /start"}
            sources, _ = await crawled(f"{site.base}/blocked")
            assert [source.problem and source.problem.kind for source in sources] == ["refused"]


async def test_credentials_go_with_the_links_of_the_site_and_are_not_shown(loop: Any) -> None:
    seen: list[str | None] = []

    async def page(request: web.Request) -> str:
        seen.append(request.headers.get("Authorization"))
        return links("/b")

    async with site_of({"/a": page, "/b": page}) as site:
        sources, _ = await crawled(site.base.replace("//", "//ann:pw@") + "/a")
        assert found(sources, site) == ["/a", "/b"]
        assert seen == ["Basic YW5uOnB3"] * 2
        assert sources[0].origin == f"{site.base}/a"
        assert sources[1].location == site.base.replace("//", "//ann:pw@") + "/b"


async def test_include_and_exclude_choose_pages(loop: Any) -> None:
    pages = {
        "/": links("/a.html", "/b.txt", "/old/"),
        "/a.html": "",
        "/b.txt": "",
        "/old/": links("/c.html"),
        "/c.html": "",
    }
    async with site_of(pages) as site:
        sources, _ = await crawled(site.base, include=["*.html"])
        assert found(sources, site) == ["/a.html", "/c.html"]
        sources, _ = await crawled(site.base, exclude=["/old/"])
        assert found(sources, site) == ["/", "/a.html", "/b.txt"]


async def test_a_site_without_end_ends(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crawl, "MOST_PAGES", 30)

    class Endless(dict[str, Any]):
        def get(self, path: str, otherwise: Any = None) -> Any:
            return (
                otherwise if path == "/robots.txt" else links(*(f"{path.rstrip('/')}/{n}" for n in range(5)))
            )

    async with site_of(Endless()) as site:
        sources, listing = await crawled(site.base, depth=1000)
        assert len(found(sources, site)) == 30
        assert list(problems(sources, site).values()) == ["too large"]
        assert not listing.complete


async def test_a_crawl_that_is_given_up_leaves_nothing_running(loop: Any) -> None:
    done = asyncio.Event()

    async def late(request: web.Request) -> str:
        await done.wait()
        return ""

    async with site_of({"/": links("/1", "/2"), "/1": late, "/2": late}) as site:
        async with client() as opened, aclosing(aiter(Listing([site.base], opened, crawl=1))) as sources:
            before = asyncio.all_tasks()
            assert (await anext(sources)).uri == f"{site.base}/"
            waiting = asyncio.ensure_future(anext(sources))
            while len(site.asked) < 4:
                await asyncio.sleep(0.001)
            waiting.cancel()
            await asyncio.wait([waiting])
        assert not {task for task in asyncio.all_tasks() - before if "visit" in repr(task)}
        done.set()


async def test_the_documentation_server_is_crawled_whole(loop: Any) -> None:
    pages = {
        name: f'<title>{name}</title><a href="/abc.html">abc</a>'.encode() for name in ("abc", "ast", "json")
    }
    async with running(make_app(pages, 0)) as base:
        sources, listing = await crawled(base, depth=1)
        assert sorted(source.uri for source in sources) == [
            f"{base}/",
            *(f"{base}/{name}.html" for name in pages),
        ]
        assert listing.complete == {f"{base}/"}


URLISH = st.lists(
    st.sampled_from(
        [
            "http:",
            "https:",
            "//",
            "/",
            "..",
            "?",
            "#",
            "@",
            ":",
            "[",
            "]",
            "%",
            "%2e",
            "a",
            "é",
            "\ud800",
            " ",
        ]
    )
    | st.text(max_size=4),
    max_size=8,
).map("".join)


@given(URLISH)
def test_no_link_breaks_a_crawl_or_leaves_the_site_unnoticed(href: str) -> None:
    joined = crawl._joined(URL("http://site/docs/page"), href)
    assert joined is None or joined.scheme in ("http", "https")
    if joined is not None:
        # What is asked for is what was looked at.
        assert URL(str(joined), encoded=True) == joined
        assert ".." not in joined.raw_path.split("/")


# robots.txt.

ROBOTS = """\
# comment
User-agent: other
User-Agent: UnWait   # us
Disallow: /a
Allow: /a/b
Disallow:
Unknown: x

Crawl-delay: 2
User-agent: *
Disallow: /

user-agent: unwait
disallow: /more*x$
"""


@pytest.mark.parametrize(
    ("text", "path", "allowed"),
    [
        (ROBOTS, "/", True),
        (ROBOTS, "/a", False),
        (ROBOTS, "/abc", False),
        (ROBOTS, "/a/b/c", True),
        (ROBOTS, "/more/x", False),
        (ROBOTS, "/more/xy", True),
        (ROBOTS.replace("\n", "\r"), "/a", False),
        (ROBOTS.replace("\n", "\r\n"), "/a/b", True),
        ("\ufeffUser-agent: *\nDisallow: /x", "/x", False),
        ("User-agent: unwait-news\nDisallow: /", "/x", True),
        ("User-agent: unwait/2.0\nDisallow: /", "/x", False),
        ("Disallow: /", "/x", True),
        ("User-agent: *\nDisallow: /", "/robots.txt", True),
        ("User-agent: *\nDisallow: /page\nAllow: /page", "/page", True),
        ("User-agent: *\nAllow: /p\nDisallow: /", "/page", True),
        ("User-agent: *\nDisallow: /*.php$", "/index.php", False),
        ("User-agent: *\nDisallow: /*.php$", "/index.php?x", True),
        ("User-agent: *\nDisallow: /*.php", "/index.php5", False),
        ("User-agent: *\nDisallow: *", "/x", False),
        ("User-agent: *\nDisallow: /$", "/", False),
        ("User-agent: *\nDisallow: /$", "/x", True),
        ("User-agent: *\nDisallow: /a*b*a$", "/aba", False),
        ("User-agent: *\nDisallow: /a*ba$", "/aba", False),
        ("User-agent: *\nDisallow: /ab*ba$", "/aba", True),
        ("User-agent: *\nDisallow: /caf%c3%a9", "/caf%C3%A9", False),
        ("User-agent: *\nDisallow: /café", "/caf%C3%A9", False),
        ("User-agent: *\nDisallow: /%7Ejoe", "/~joe/x", False),
        ("User-agent: *\nDisallow: /a%2Fb", "/a/b", True),
        ("User-agent: *\nCrawl-delay: 1\nDisallow: /x\nUser-agent: y\nDisallow: /z", "/x", False),
    ],
)
def test_the_longest_rule_of_the_right_group_decides(text: str, path: str, allowed: bool) -> None:
    assert robots.parse(text.encode()).allows(path) is allowed


def test_a_delay_is_a_number_of_seconds() -> None:
    assert robots.parse(ROBOTS.encode()).delay == 2
    for text, delay in [
        ("0.5", 0.5),
        ("nan", None),
        ("inf", None),
        ("-1", None),
        ("soon", None),
        ("1e9", 86_400),
    ]:
        assert robots.parse(f"User-agent: *\nCrawl-delay: {text}".encode()).delay == delay


@given(st.binary(max_size=300), st.text(max_size=30))
def test_no_file_breaks_the_reading_of_it(content: bytes, path: str) -> None:
    robots.parse(content).allows("/" + path)


@given(st.text("ab*$/", min_size=1, max_size=10), st.text("ab/", max_size=12))
def test_stars_match_as_an_expression_does(pattern: str, path: str) -> None:
    import re

    target = "/" + path
    body = "".join(
        ".*" if letter == "*" else re.escape(letter) for letter in ("/" + pattern).removesuffix("$")
    )
    expected = re.match(body + (r"\Z" if pattern.endswith("$") else ""), target) is None
    assert robots.parse(f"User-agent: *\nDisallow: /{pattern}".encode()).allows(target) is expected


@pytest.mark.parametrize(
    "page", ["<b><i>" * 40_000, "<p " + "".join(f"a{n}=1 " for n in range(60_000)) + ">"]
)
def test_a_page_nested_to_break_the_parser_does_not_hold_up_a_crawl(page: str) -> None:
    started = time.process_time()
    content = Content(f"<html>{page}<a href=b>b</a>".encode(), "", "text/html", "utf-8")
    crawl._links(content, "http://site.test/a", set(), lambda url: True)
    assert time.process_time() - started < 2
