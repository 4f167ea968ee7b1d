"""The application that `test_uvicorn.py` has uvicorn serve."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    print("lifespan: started", file=sys.stderr, flush=True)
    yield
    await asyncio.sleep(0)
    print("lifespan: ended", file=sys.stderr, flush=True)


async def loop(request: Request) -> Response:
    running = asyncio.get_running_loop()
    return JSONResponse(
        {"module": type(running).__module__, "name": type(running).__name__, "pid": os.getpid()}
    )


async def digest(request: Request) -> Response:
    """SHA-256 of a body that is read as it comes."""
    sha, size = hashlib.sha256(), 0
    async for chunk in request.stream():
        sha.update(chunk)
        size += len(chunk)
    return JSONResponse({"size": size, "sha256": sha.hexdigest()})


async def count(request: Request) -> Response:
    """A streamed body of so many numbered lines."""
    lines = int(request.path_params["lines"])

    async def body() -> AsyncIterator[bytes]:
        for start in range(0, lines, 100):
            yield b"".join(b"%d\n" % number for number in range(start, min(start + 100, lines)))
            await asyncio.sleep(0)

    return StreamingResponse(body(), media_type="text/plain")


async def hold(request: Request) -> Response:
    """A first line at once, the last one when the file `until` exists."""
    until = Path(request.query_params["until"])

    async def body() -> AsyncIterator[bytes]:
        yield b"first\n"
        while not until.exists():
            await asyncio.sleep(0.01)
        yield b"last\n"

    return StreamingResponse(body(), media_type="text/plain")


def blocking(request: Request) -> Response:
    """Not a coroutine: Starlette runs it in a thread."""
    return PlainTextResponse("from a thread")


async def file(request: Request) -> Response:
    return FileResponse(__file__)


async def fail(request: Request) -> Response:
    raise LookupError("meant to fail")


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        return


app = Starlette(
    routes=[
        Route("/loop", loop),
        Route("/digest", digest, methods=["POST"]),
        Route("/count/{lines:int}", count),
        Route("/hold", hold),
        Route("/blocking", blocking),
        Route("/file", file),
        Route("/fail", fail),
        WebSocketRoute("/echo", echo),
    ],
    lifespan=lifespan,
)
