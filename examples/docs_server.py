"""The documentation of Python's standard library as a small website with the latency of a distant one.

    python examples/docs_server.py --port 8080

Every page is rendered by pydoc from a module that is installed here. `/` links to all pages, `/urls.txt` has
their addresses one a line, `/sitemap.xml` has them as a sitemap, `/asyncio.html` is the page of asyncio. The
latency of a page is drawn from its name, so that two runs over the same pages meet the same waits.
"""

import argparse
import asyncio
import contextlib
import importlib
import math
import pydoc
import random
import sys
import warnings

from aiohttp import web

# Importing these opens a browser, prints, needs a display, is slow, or documents nothing.
SKIPPED = {
    "antigravity",
    "idlelib",
    "lib2to3",
    "test",
    "this",
    "tkinter",
    "turtle",
    "turtledemo",
    "nt",
    "ntpath",
    "nturl2path",
}


def render_pages() -> dict[str, bytes]:
    """The pages by module name. Takes a few seconds; a module that is not built here has no page."""
    pages = {}
    for name in sorted(sys.stdlib_module_names - SKIPPED):
        if name.startswith("_"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue
            page = pydoc.html.page(pydoc.describe(module), pydoc.html.document(module, name))
        pages[name] = page.encode("utf-8", "xmlcharrefreplace")
    return pages


def latency(name: str, median: float, spread: float = 0.5) -> float:
    """Seconds until the page is sent: log-normal as on the real web, at most 1, the same every time."""
    return min(random.Random(name).lognormvariate(math.log(median), spread), 1.0) if median > 0 else 0.0


def make_app(pages: dict[str, bytes], median: float = 0.08) -> web.Application:
    """The website; `median` is the median latency of a page in seconds, 0 for none."""

    async def index(request: web.Request) -> web.Response:
        links = "".join(f'<li><a href="/{name}.html">{name}</a></li>' for name in pages)
        return web.Response(
            text=f"<!doctype html><title>Standard library</title><ul>{links}</ul>", content_type="text/html"
        )

    async def urls(request: web.Request) -> web.Response:
        return web.Response(text="".join(f"{request.url.origin()}/{name}.html\n" for name in pages))

    async def sitemap(request: web.Request) -> web.Response:
        places = "".join(f"<url><loc>{request.url.origin()}/{name}.html</loc></url>" for name in pages)
        body = f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{places}</urlset>'
        return web.Response(text=body, content_type="application/xml")

    async def page(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        await asyncio.sleep(latency(name, median))
        if name not in pages:
            raise web.HTTPNotFound
        return web.Response(body=pages[name], content_type="text/html", charset="utf-8")

    app = web.Application()
    app.router.add_get("/", index)
    app.router.add_get("/urls.txt", urls)
    app.router.add_get("/sitemap.xml", sitemap)
    app.router.add_get("/{name}.html", page)
    return app


async def serve(port: int, median: float) -> None:
    """Serve on 127.0.0.1 until cancelled; prints the address once it answers."""
    runner = web.AppRunner(make_app(render_pages(), median), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}/", flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the standard library's documentation on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=8080, help="0 picks a free one (default: 8080)")
    parser.add_argument("--latency", type=float, default=0.08, metavar="SECONDS", help="median, default 0.08")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.port, arguments.latency))


if __name__ == "__main__":
    main()
