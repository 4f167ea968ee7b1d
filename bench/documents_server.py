"""A website of the corpus and an embeddings API like OpenAI's, both with the latency of distant ones, in one process.

    python documents_server.py

prints {"port": …} as one line of JSON. GET /pages/NAME takes 50 ms, POST /v1/embeddings 100 ms, however many there
are at the same time: each is a timer. Bodies and vectors are made before the first request, so that a request costs
the server a fraction of a millisecond. GET /calls says how many of each there were.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import struct
import sys
import zlib
from collections import Counter

from aiohttp import web
from documents_corpus import POSTGRESQL
from loops import new_loop

PAGE_LATENCY = 0.050
EMBEDDING_LATENCY = 0.100
DIMENSIONS = 256
VECTORS = 1024


def make_vectors() -> list[tuple[str, str]]:
    """So many vectors, as base64 and as JSON; a text's is chosen by its checksum."""
    chosen = random.Random(1)
    found = []
    for _ in range(VECTORS):
        vector = [chosen.gauss(0, 1) for _ in range(DIMENSIONS)]
        packed = base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *vector)).decode()
        found.append((json.dumps(packed), json.dumps([round(value, 6) for value in vector])))
    return found


def make_app() -> web.Application:
    pages = {page.name: page.read_bytes() for page in POSTGRESQL.pages()}
    tags = {name: f'"{zlib.crc32(body):08x}"' for name, body in pages.items()}
    vectors = make_vectors()
    calls: Counter[str] = Counter()

    async def page(request: web.Request) -> web.Response:
        calls["pages"] += 1
        await asyncio.sleep(PAGE_LATENCY)
        name = request.match_info["name"]
        headers = {"ETag": tags[name]}
        if request.headers.get("If-None-Match") == tags[name]:
            return web.Response(status=304, headers=headers)
        return web.Response(body=pages[name], content_type="text/html", charset="utf-8", headers=headers)

    async def embeddings(request: web.Request) -> web.Response:
        calls["embeddings"] += 1
        asked = json.loads(await request.read())
        texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
        calls["texts"] += len(texts)
        form = 0 if asked.get("encoding_format") == "base64" else 1
        rows = (vectors[zlib.crc32(text.encode()) % VECTORS][form] for text in texts)
        data = ",".join(
            f'{{"object":"embedding","index":{n},"embedding":{row}}}' for n, row in enumerate(rows)
        )
        await asyncio.sleep(EMBEDDING_LATENCY)
        tokens = sum(map(len, texts)) // 4
        usage = f'{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}'
        body = f'{{"object":"list","model":"bench","data":[{data}],"usage":{usage}}}'
        return web.Response(body=body.encode(), content_type="application/json")

    async def counted(_: web.Request) -> web.Response:
        said = dict(calls)
        calls.clear()
        return web.json_response(said)

    app = web.Application(client_max_size=64 << 20)
    app.router.add_get("/pages/{name}", page)
    app.router.add_post("/v1/embeddings", embeddings)
    app.router.add_get("/calls", counted)
    return app


async def main() -> None:
    runner = web.AppRunner(make_app(), access_log=None, keepalive_timeout=600)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=lambda: new_loop("unwait")) as runner:
        try:
            runner.run(main())
        except KeyboardInterrupt:
            sys.exit(130)
