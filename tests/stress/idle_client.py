"""The clients' side of the idle test: holds connections on a loop of its own, and asks them all when told to.

Usage: idle_client.py LOOP PORT CONNECTIONS. Lines on stdin: `ask` (one JSON line answers), `stop`.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys


class Asker(asyncio.Protocol):
    """One idle connection."""

    def __init__(self, number: int) -> None:
        self.question = b"%d\n" % number
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self) -> asyncio.Future[bool]:
        self.answer = b""
        self.answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.transport.write(self.question)
        return self.answered

    def data_received(self, data: bytes) -> None:
        self.answer += data
        if self.answer.endswith(b"\n"):
            self.answered.set_result(self.answer == self.question)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


async def main(port: int, connections: int) -> None:
    loop = asyncio.get_running_loop()
    askers: list[Asker] = []
    while len(askers) < connections:
        batch = range(len(askers), min(len(askers) + 200, connections))
        made = [loop.create_connection(lambda n=number: Asker(n), "127.0.0.1", port) for number in batch]
        askers += [protocol for _, protocol in await asyncio.gather(*made)]
    print("connected", flush=True)
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline() == b"ask\n":
        answers = await asyncio.wait_for(asyncio.gather(*(asker.ask() for asker in askers)), 60)
        report = {"asked": len(askers), "answered": sum(answers), "lost": sum(asker.lost for asker in askers)}
        print(json.dumps(report), flush=True)
    for asker in askers:
        asker.transport.abort()
    await asyncio.sleep(0)


if __name__ == "__main__":
    if sys.argv[1] == "unwait":
        from unwait import new_event_loop
    else:
        new_event_loop = asyncio.SelectorEventLoop
    count = int(sys.argv[3])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main(int(sys.argv[2]), count))
