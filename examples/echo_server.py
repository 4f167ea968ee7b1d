"""An echo server on unwait's loop: whatever a client sends comes back.

python examples/echo_server.py --port 9000
nc 127.0.0.1 9000
"""

import argparse
import asyncio
import contextlib

import unwait


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        # A client that sends without reading must not fill our memory.
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
    async with server:
        host, port = server.sockets[0].getsockname()
        print(f"echo on {host}:{port}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Echo on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=9000, help="0 picks a free one (default: 9000)")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        unwait.run(main(arguments.port))
