"""`uvicorn --loop unwait:new_event_loop`: a real server process, queried over sockets, ended by signals."""

from __future__ import annotations

import asyncio
import hashlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue

import aiohttp
import httpx
import pytest

HERE = Path(__file__).parent
START = 60.0  # seconds for the server to start or to end


class Uvicorn:
    """A running uvicorn process: its address and what it logs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: Queue[str | None] = Queue()
        self.log: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        self.url = ""

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.put(line)
        self.lines.put(None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match of a regular expression in a line that was not looked at before."""
        while True:
            try:
                line = self.lines.get(timeout=START)
            except Empty:
                line = None
            if line is None:
                pytest.fail(f"uvicorn did not log {pattern!r}:\n{''.join(self.log)}")
            self.log.append(line)
            if found := re.search(pattern, line):
                return found

    def end(self, signum: int) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(signum)
        return self.process.wait(START)

    def rest_of_log(self) -> str:
        self.reader.join()
        while line := self.lines.get():
            self.log.append(line)
        return "".join(self.log)


@contextmanager
def uvicorn(factory_path: str, *more: str) -> Iterator[Uvicorn]:
    command = [sys.executable, "-m", "uvicorn", "--loop", factory_path, "--port", "0", "--app-dir", str(HERE)]
    with subprocess.Popen(
        [*command, *more, "starlette_app:app"], stderr=subprocess.PIPE, text=True
    ) as process:
        server = Uvicorn(process)
        try:
            server.url = server.wait_for(r"running on (http://\S+)").group(1)
            yield server
        finally:
            process.kill()
            server.reader.join()


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_serves_and_ends_at_sigterm(factory_path: str, loop_name: str, http: str) -> None:
    with uvicorn(factory_path, "--http", http) as server, httpx.Client(base_url=server.url) as client:
        loop = client.get("/loop").json()
        assert loop["module"].startswith(loop_name)
        assert loop["pid"] == server.process.pid
        for size in (0, 1, 100_000, 3_000_000):
            body = bytes(range(256)) * (size // 256)
            expected = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            assert client.post("/digest", content=body).json() == expected
            chunked = client.post(
                "/digest", content=(body[i : i + 50_000] for i in range(0, len(body), 50_000))
            )
            assert chunked.json() == expected
        assert client.get("/count/20000").text.splitlines() == [str(number) for number in range(20_000)]
        assert client.get("/blocking").text == "from a thread"
        assert client.get("/file").content == (HERE / "starlette_app.py").read_bytes()
        assert client.get("/none").status_code == 404
        assert client.get("/fail").status_code == 500
        # uvicorn ends in good order and then, as is proper, lets the signal have its way.
        assert server.end(signal.SIGTERM) == -signal.SIGTERM
        log = server.rest_of_log()
        assert log.index("lifespan: started") < log.index("Shutting down") < log.index("lifespan: ended")
        assert "LookupError: meant to fail" in log
        assert log.count("Traceback") == 1


def test_answers_many_at_once_each_its_own(factory_path: str) -> None:
    with uvicorn(factory_path, "--log-level", "info", "--no-access-log") as server:
        with httpx.Client(base_url=server.url, limits=httpx.Limits(max_connections=16)) as client:

            def ask(number: int) -> bool:
                lines = number % 300
                return client.get(f"/count/{lines}").text == "".join(f"{n}\n" for n in range(lines))

            with ThreadPoolExecutor(16) as threads:
                assert all(threads.map(ask, range(600)))
        assert server.end(signal.SIGTERM) == -signal.SIGTERM


def test_request_in_flight_is_finished_after_sigterm(factory_path: str, tmp_path: Path) -> None:
    until = tmp_path / "until"
    with uvicorn(factory_path) as server:
        with httpx.stream(
            "GET", f"{server.url}/hold", params={"until": str(until)}, timeout=START
        ) as response:
            lines = response.iter_lines()
            assert next(lines) == "first"
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("Waiting for connections to close|Shutting down")
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{server.url}/loop")
            until.touch()
            assert list(lines) == ["last"]
        assert server.process.wait(START) == -signal.SIGTERM
        assert "Traceback" not in server.rest_of_log()


def test_ends_at_ctrl_c(factory_path: str) -> None:
    with uvicorn(factory_path) as server:
        assert httpx.get(f"{server.url}/blocking").text == "from a thread"
        assert server.end(signal.SIGINT) in (0, 130, -signal.SIGINT)
        log = server.rest_of_log()
        assert "lifespan: ended" in log
        assert "Traceback" not in log


async def test_websockets(factory_path: str) -> None:
    with uvicorn(factory_path, "--ws", "websockets-sansio") as server:
        async with aiohttp.ClientSession() as session:

            async def talk(number: int) -> None:
                async with session.ws_connect(f"{server.url}/echo") as websocket:
                    for message in (f"{number}:{turn}" * (1 + 500 * turn) for turn in range(20)):
                        await websocket.send_str(message)
                        assert await websocket.receive_str() == message

            await asyncio.gather(*(talk(number) for number in range(20)))
        assert await asyncio.to_thread(server.end, signal.SIGTERM) == -signal.SIGTERM


def test_worker_processes(factory_path: str, loop_name: str) -> None:
    """With `--workers` each worker makes its own loop; SIGTERM to the parent ends them all."""
    with uvicorn(factory_path, "--workers", "2") as server:
        server.wait_for("Application startup complete")
        server.wait_for("Application startup complete")
        seen = {}
        for _ in range(200):
            answer = httpx.get(f"{server.url}/loop").json()
            assert answer["module"].startswith(loop_name)
            seen[answer["pid"]] = answer
            if len(seen) == 2:
                break
        assert server.process.pid not in seen
        assert server.end(signal.SIGTERM) in (0, -signal.SIGTERM)
        for pid in seen:
            assert not Path(f"/proc/{pid}").exists()


def test_unix_socket(factory_path: str, loop_name: str, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    command = [sys.executable, "-m", "uvicorn", "--loop", factory_path, "--uds", path, "--app-dir", str(HERE)]
    with subprocess.Popen([*command, "starlette_app:app"], stderr=subprocess.PIPE, text=True) as process:
        server = Uvicorn(process)
        try:
            server.wait_for("running on unix socket")
            with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://server") as client:
                assert client.get("/loop").json()["module"].startswith(loop_name)
            assert server.end(signal.SIGTERM) == -signal.SIGTERM
        finally:
            process.kill()
            server.reader.join()
