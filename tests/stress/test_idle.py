"""5,000 connections held idle, server ends on one loop, clients on another: every one still answers."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CONNECTIONS = 5_000
FDS_NEEDED = CONNECTIONS + 200
CLIENT = Path(__file__).with_name("idle_client.py")


@pytest.fixture
def many_fds() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FDS_NEEDED:
        pytest.skip(f"the hard limit of open files is {hard}, and {FDS_NEEDED} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FDS_NEEDED), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Answer(asyncio.Protocol):
    """Answers each line with the same line and this connection's own serial number."""

    def __init__(self, live: dict[int, asyncio.Transport]) -> None:
        self.live = live
        self.line = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.live[id(self)] = transport

    def data_received(self, data: bytes) -> None:
        self.line += data
        if self.line.endswith(b"\n"):
            self.transport.write(self.line)
            self.line = b""

    def connection_lost(self, exc: Exception | None) -> None:
        del self.live[id(self)]


async def test_five_thousand_idle_connections_all_answer(many_fds: None, loop_name: str) -> None:
    loop = asyncio.get_running_loop()
    live: dict[int, asyncio.Transport] = {}
    server = await loop.create_server(lambda: Answer(live), "127.0.0.1", 0, backlog=4_096)
    async with server:
        port = server.sockets[0].getsockname()[1]
        client = await asyncio.create_subprocess_exec(
            sys.executable,
            str(CLIENT),
            loop_name,
            str(port),
            str(CONNECTIONS),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert client.stdin is not None
            assert client.stdout is not None
            assert await client.stdout.readline() == b"connected\n"
            while len(live) < CONNECTIONS:  # accepted by the kernel, not yet all by the loop
                await asyncio.sleep(0.01)
            # Idle connections cost an idle loop nothing: no turn of it takes CPU time for them.
            before = os.times()
            await asyncio.sleep(0.3)
            after = os.times()
            assert after.user + after.system - before.user - before.system < 0.15
            for _ in range(2):
                client.stdin.write(b"ask\n")
                report = json.loads(await client.stdout.readline())
                assert report == {"asked": CONNECTIONS, "answered": CONNECTIONS, "lost": 0}
            client.stdin.write(b"stop\n")
            assert await client.wait() == 0
        finally:
            if client.returncode is None:
                client.send_signal(signal.SIGKILL)
                await client.wait()
        while live:
            await asyncio.sleep(0.01)
