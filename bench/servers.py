"""The measured servers: `python servers.py MODE LOOP` serves 127.0.0.1 on a free port until it is killed.

One line of JSON says {"port": N} when it serves, or {"unsupported": "why"} when the loop cannot do it.

Echo modes: `protocol`, `buffered` (BufferedProtocol), `streams`, `sock` (loop.sock_*), `tls` (protocol over
TLS; the paths of a certificate and key follow). Real stacks that answer a GET with 13 bytes: `aiohttp`,
`uvicorn` (httptools, Starlette).
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Any

from loops import FACTORIES, Unsupported, new_loop

BACKLOG = 4096
STREAM_READ = 64 * 1024
SOCK_READ = 64 * 1024
BUFFERED_READ = 256 * 1024
BODY = b"Hello, world!"


def listen() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def report(**what: object) -> None:
    print(json.dumps(what), flush=True)


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    """Echoes from one buffer shared by all connections; the slice copies, as a loop may write later on."""

    buffer = bytearray(BUFFERED_READ)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(self.buffer[:nbytes])


async def serve_protocol(listener: socket.socket, _: str) -> None:
    await asyncio.get_running_loop().create_server(Echo, sock=listener, backlog=BACKLOG)


async def serve_buffered(listener: socket.socket, _: str) -> None:
    await asyncio.get_running_loop().create_server(BufferedEcho, sock=listener, backlog=BACKLOG)


async def serve_tls(listener: socket.socket, _: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*sys.argv[3:5])
    await asyncio.get_running_loop().create_server(Echo, sock=listener, backlog=BACKLOG, ssl=context)


async def stream_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(STREAM_READ):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve_streams(listener: socket.socket, loop_name: str) -> None:
    if loop_name == "unwait":
        from unwait import start_server
    else:
        from asyncio import start_server
    await start_server(stream_echo, sock=listener, backlog=BACKLOG)


async def sock_echo(peer: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with peer:
        while data := await loop.sock_recv(peer, SOCK_READ):
            await loop.sock_sendall(peer, data)


async def serve_sock(listener: socket.socket, _: str) -> None:
    loop = asyncio.get_running_loop()
    tasks = set()

    async def accept_forever() -> None:
        while True:
            peer, _ = await loop.sock_accept(listener)
            peer.setblocking(False)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(sock_echo(peer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    tasks.add(loop.create_task(accept_forever()))


async def serve_aiohttp(listener: socket.socket, _: str) -> None:
    from aiohttp import web

    async def hello(request: web.Request) -> web.Response:
        return web.Response(body=BODY, content_type="text/plain")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener, backlog=BACKLOG).start()


def run_uvicorn(loop_name: str) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse(BODY)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            report(port=port)

    listener = listen()
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        Starlette(routes=[Route("/", hello)]),
        loop=FACTORIES[loop_name],
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
        backlog=BACKLOG,
    )
    Server(config).run(sockets=[listener])


MODES: dict[str, Callable[[socket.socket, str], Any]] = {
    "protocol": serve_protocol,
    "buffered": serve_buffered,
    "streams": serve_streams,
    "sock": serve_sock,
    "tls": serve_tls,
    "aiohttp": serve_aiohttp,
}


def main() -> int:
    mode, loop_name = sys.argv[1:3]
    try:
        loop = new_loop(loop_name)
        if mode == "uvicorn":
            loop.close()
            run_uvicorn(loop_name)
            return 0
        listener = listen()
        port = listener.getsockname()[1]
        asyncio.set_event_loop(loop)
        loop.run_until_complete(MODES[mode](listener, loop_name))
    except Unsupported as error:
        report(unsupported=str(error))
        return 3
    except NotImplementedError:
        report(unsupported=f"{loop_name} has no such feature")
        return 3
    report(port=port)
    loop.run_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
