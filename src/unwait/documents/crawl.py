"""A site, page by page, from where it was named: within its origin and its directory, as robots.txt allows."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple

from yarl import URL

from unwait.documents import robots
from unwait.documents.ignore import Selection
from unwait.documents.load import content_of, refusal, unanswered
from unwait.documents.model import Content, SourceFailed
from unwait.documents.names import Seen, normal
from unwait.documents.robots import Robots
from unwait.web.client import Client
from unwait.web.errors import ClientError, InvalidURL, RedirectError
from unwait.web.response import Response
from unwait.web.text import encoding_of
from unwait.web.urls import redact

AT_ONCE = 4  # requests to the site under way at the same time
MOST_PAGES = 100_000
_LONGEST_LINK = 8192  # characters
HTML = ("text/html", "application/xhtml+xml")
# What is linked often and never is a document.
_NO_DOCUMENT = re.compile(
    r"\.(7z|apk|avi|avif|bmp|bz2|css|deb|dmg|eot|exe|gif|gz|ico|iso|jar|jpe?g|js|m4[av]|mkv|mov|mp[34]|mpeg|msi|og[gv]|otf"
    r"|png|rar|rpm|svg|tar|tgz|tiff?|ttf|wasm|wav|web[mp]|whl|woff2?|xz|zip|zst)$",
    re.IGNORECASE,
)


class Page(NamedTuple):
    """A page of the site: its content, or why there is none. `partial`: links may be missing because of that."""

    url: URL
    content: Content | None
    problem: SourceFailed | None = None
    partial: bool = False


class _Links(NamedTuple):
    urls: list[URL]
    indexed: bool  # whether the page may be


class Sites:
    """What the sites ask of crawlers, each asked once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[URL, Robots | SourceFailed] = {}

    async def robots(self, url: URL) -> Robots:
        """The rules of the site of this page. Raises SourceFailed where the server cannot say: nothing is allowed."""
        site = url.origin()
        known = self._known.get(site)
        if known is None:
            known = self._known[site] = await self._ask(url)
        if isinstance(known, SourceFailed):
            raise known
        return known

    async def _ask(self, url: URL) -> Robots | SourceFailed:
        address = url.with_path("/robots.txt").with_query(None).with_fragment(None)
        try:
            response = await self._client.get(str(address), keep=robots.LONGEST)
        except RedirectError:
            return Robots()
        except ClientError as error:
            why = unanswered(error)
            return SourceFailed(f"not crawled: its robots.txt cannot be read: {why}", kind=why.kind)
        if response.status >= 500:
            why = refusal(response)
            return SourceFailed(f"not crawled: its robots.txt answers {why}", kind=why.kind)
        if response.status >= 300:
            return Robots()
        return await asyncio.to_thread(robots.parse, response.content)


class Crawl:
    """The pages that are at most `depth` links away from `start`.

    Level by level, so that a page's distance does not depend on which answer comes first.
    """

    def __init__(self, start: URL, depth: int, client: Client, sites: Sites, selection: Selection) -> None:
        self._start = start
        self._depth = depth
        self._client = client
        self._sites = sites
        self._selection = selection
        self._visited = Seen()
        self._pages = 1
        self._rest: URL | None = None  # the first page that is one too many
        self._next_request = 0.0
        self._scope = (start.origin(), _directory(start))
        self._robots = Robots()

    async def pages(self) -> AsyncGenerator[Page, None]:
        """Each page once; a page that asks not to be indexed has no content and no problem, and is left out."""
        try:
            self._robots = await self._sites.robots(self._start)
        except SourceFailed as problem:
            yield Page(self._start, None, problem, True)
            return
        if not self._robots.allows(self._start.raw_path_qs):
            refused = SourceFailed("not crawled: the site's robots.txt does not allow it", kind="refused")
            yield Page(self._start, None, refused, True)
            return
        self._visited.add(str(self._start))
        # As text, which is smaller.
        level = [str(self._start)]
        for depth in range(self._depth + 1):
            if not level:
                break
            found: list[str] = []
            waiting = iter(level)
            running: set[asyncio.Task[tuple[Page | None, list[URL]]]] = set()
            try:
                while True:
                    while len(running) < AT_ONCE and (url := next(waiting, None)) is not None:
                        running.add(asyncio.create_task(self._visit(URL(url, encoded=True), depth)))
                    if not running:
                        break
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        page, links = task.result()
                        found += await asyncio.to_thread(self._new, links)
                        if page is not None:
                            yield page
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
            level = found
        if self._rest is not None:
            too_many = SourceFailed(
                f"from here on nothing is crawled: these are more than {MOST_PAGES:,} pages; name parts of the site",
                kind="too large",
            )
            yield Page(self._rest, None, too_many, True)

    def _new(self, links: list[URL]) -> list[str]:
        """The links to pages that are wanted and were not linked before. In a thread: a site may have many rules."""
        new: list[str] = []
        for url in links:
            if self._visited.add(str(url)) and self._allowed(url):
                if self._pages >= MOST_PAGES:
                    self._rest = self._rest or url
                    break
                self._pages += 1
                new.append(str(url))
        return new

    def _in_scope(self, url: URL) -> bool:
        site, directory = self._scope
        return url.origin() == site and url.raw_path.startswith(directory)

    def _allowed(self, url: URL) -> bool:
        return (
            not _NO_DOCUMENT.search(url.raw_path)
            and not self._selection.excludes_page(path_in(url))
            and self._robots.allows(url.raw_path_qs)
        )

    async def _visit(self, url: URL, depth: int) -> tuple[Page | None, list[URL]]:
        """The page, if it is one of the site that may be shown, and its links."""
        await self._turn()
        try:
            response = await self._client.get(str(url))
        except ClientError as error:
            return Page(url, None, unanswered(error), True), []
        try:
            final = self._final(url, response)
            if final != url and depth == 0:
                await self._move(final)
        except SourceFailed as problem:
            return Page(url, None, problem, True), []
        if final != url and depth and not (self._in_scope(final) and self._allowed(final)):
            return None, []
        if final != url and depth and not self._visited.add(str(final)):
            return None, []
        if not 200 <= response.status < 300:
            refused = refusal(response)
            # A page that is gone has no links to miss; but where it all begins, everything is missing.
            return Page(url, None, refused, not refused.gone or depth == 0), []
        content = await content_of(response)
        words = _words(response.headers.getall("X-Robots-Tag", ()))
        links = _Links([], True)
        if content.media_type in HTML:
            try:
                links = await asyncio.to_thread(_links, content, str(final), words, self._in_scope)
            except SourceFailed as problem:
                return Page(url, None, problem, True), []
        elif words & {"noindex", "none"}:
            links = _Links([], False)
        wanted = links.indexed and self._selection.includes(path_in(final))
        return Page(final, content) if wanted else None, links.urls if depth < self._depth else []

    async def _turn(self) -> None:
        """Wait until the site wants another request."""
        delay = self._robots.delay
        if delay:
            now = asyncio.get_running_loop().time()
            at = max(self._next_request, now)
            self._next_request = at + delay
            if at > now:
                await asyncio.sleep(at - now)

    def _final(self, url: URL, response: Response) -> URL:
        """Where the answer came from, with the credentials that the site was named with."""
        shown = redact(str(url.with_user(None) if url.raw_user is not None else url))
        if response.url == shown:
            return url
        try:
            final = normal(response.url)
        except InvalidURL as error:
            raise unanswered(error) from None
        same = final.origin() == url.origin()
        return final.with_user(url.user).with_password(url.password) if same else final.with_user(None)

    async def _move(self, final: URL) -> None:
        """Begin where the start leads to: http://site is where https://www.site/ is."""
        self._scope = (final.origin(), _directory(final))
        self._robots = await self._sites.robots(final)
        self._visited.add(str(final))
        if not self._robots.allows(final.raw_path_qs):
            raise SourceFailed("not crawled: the site's robots.txt does not allow it", kind="refused")


def _directory(url: URL) -> str:
    return url.raw_path[: url.raw_path.rfind("/") + 1]


def path_in(url: URL) -> bytes:
    """The path of a page in its site, for patterns."""
    return url.path.lstrip("/").encode("utf-8", "surrogateescape")


def _words(values: list[str] | tuple[()]) -> set[str]:
    """What X-Robots-Tag or a meta element says to us."""
    words: set[str] = set()
    for value in values:
        agent, colon, rest = value.partition(":")
        if colon and agent.strip().lower() not in (robots.AGENT, "noindex", "nofollow", "none"):
            continue
        words.update(word.strip().lower() for word in (rest if colon else value).split(","))
    return words


def _links(content: Content, address: str, words: set[str], in_scope: Callable[[URL], bool]) -> _Links:
    """What an HTML page links to in its site, if it lets itself be followed. Raises SourceFailed."""
    from unwait.documents.html import parsed

    text = content.body.decode(encoding_of(content.body, content.charset), "replace")
    tree = parsed(text)
    for meta in tree.css("meta[name][content]"):
        if (meta.attributes.get("name") or "").strip().lower() in ("robots", robots.AGENT):
            words = words | _words([meta.attributes.get("content") or ""])
    index = not words & {"noindex", "none"}
    if words & {"nofollow", "none"}:
        return _Links([], index)
    page = base = URL(address)
    if (element := tree.css_first("base[href]")) is not None:
        base = _joined(base, element.attributes.get("href")) or base
    urls: dict[URL, None] = {}
    for link in tree.css("a[href], area[href]"):
        if "nofollow" in (link.attributes.get("rel") or "").lower().split():
            continue
        url = _joined(base, link.attributes.get("href"))
        if url is not None and in_scope(url):
            # The credentials of the page go with its links within the site.
            if page.raw_user is not None and url.raw_user is None:
                url = url.with_user(page.user).with_password(page.password)
            urls[url] = None
            if len(urls) > MOST_PAGES:
                break  # more than are crawled anyway
    return _Links(list(urls), index)


def _joined(base: URL, href: str | None) -> URL | None:
    """The http or https address that a link leads to."""
    # As browsers do; a tab or a break within an address is nothing.
    text = (href or "").strip().translate({9: None, 10: None, 13: None})
    if text.startswith("#") or len(text) > _LONGEST_LINK:
        return None
    try:
        url = base.join(URL(text))
        if url.scheme not in ("http", "https"):
            return None
        return normal(str(url))
    except ValueError:
        return None
