"""What is measured, and the targets: the tables that the runner and the renderer share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BASELINE = "uvloop"
OURS = "unwait"
YARDSTICK = "C"


@dataclass(frozen=True)
class Cell:
    """One measurement: a server under load, a micro-benchmark, or memory held by idle connections."""

    name: str
    kind: Literal["server", "micro", "memory"]
    mode: str
    connections: int = 0
    load: tuple[str, ...] = ()
    yardstick: bool = False
    """Whether the C epoll server takes part too."""


@dataclass(frozen=True)
class Row:
    """One line of the tables: a metric of a cell, and the largest ratio to uvloop that is wanted."""

    cell: str
    title: str
    target: float
    best_peer: str = "not measured"
    metric: Literal["cpu_us", "p50_us", "memory_kib"] = "cpu_us"
    headline: bool = False

    @property
    def name(self) -> str:
        return self.cell if self.metric != "p50_us" else f"{self.cell}-p50"


def echo(name: str, mode: str, connections: int, size: int, *, yardstick: bool = False) -> Cell:
    return Cell(name, "server", mode, connections, ("--size", str(size)), yardstick)


CELLS = {
    cell.name: cell
    for cell in (
        echo("echo-100", "protocol", 100, 1024, yardstick=True),
        echo("echo-1000", "protocol", 1000, 1024, yardstick=True),
        echo("echo-100k", "protocol", 50, 100 * 1024, yardstick=True),
        echo("echo-buffered", "buffered", 100, 1024),
        echo("echo-streams", "streams", 100, 1024),
        echo("echo-sock", "sock", 100, 1024),
        echo("echo-tls", "tls", 100, 1024),
        echo("echo-one", "protocol", 1, 1024, yardstick=True),
        Cell("aiohttp", "server", "aiohttp", 100, ("--http", "/")),
        Cell("uvicorn", "server", "uvicorn", 100, ("--http", "/")),
        Cell("call_soon_chained", "micro", "call_soon_chained"),
        Cell("call_soon_bulk", "micro", "call_soon_bulk"),
        Cell("sleep_zero", "micro", "sleep_zero"),
        Cell("task", "micro", "task"),
        Cell("gather", "micro", "gather"),
        Cell("future", "micro", "future"),
        Cell("queue", "micro", "queue"),
        Cell("timeout", "micro", "timeout"),
        Cell("timers_cancelled", "micro", "timers_cancelled"),
        Cell("sleeps_fired", "micro", "sleeps_fired"),
        Cell("threadsafe_thread", "micro", "threadsafe_thread"),
        Cell("threadsafe_own", "micro", "threadsafe_own"),
        Cell("memory", "memory", "protocol", 2000, ("--size", "1024")),
    )
}

ROWS = (
    Row("echo-100", "echo, protocol, 1 KiB, 100 connections", 0.90, "blazio 0.92, C 0.80", headline=True),
    Row("echo-1000", "echo, protocol, 1 KiB, 1,000 connections", 0.88, "rloop 0.94, C 0.73", headline=True),
    Row("echo-100k", "echo, protocol, 100 KiB, 50 connections", 0.83, "rloop 0.83, C 0.79"),
    Row("echo-buffered", "echo, buffered protocol, 1 KiB, 100 connections", 0.90, "blazio 0.90"),
    Row("echo-streams", "echo, streams, 1 KiB, 100 connections", 0.80, "blazio 0.85", headline=True),
    Row("echo-sock", "echo, `sock_*`, 1 KiB, 100 connections", 0.45, "rloop 0.46"),
    Row("echo-tls", "echo over TLS, 1 KiB, 100 connections", 0.95, headline=True),
    Row("echo-one", "one connection, 1 KiB: CPU per message", 0.90, "rloop 0.76"),
    Row("echo-one", "one connection, 1 KiB: p50 latency", 1.00, "rloop 0.76", metric="p50_us"),
    Row("call_soon_chained", "`call_soon`, chained", 0.35, "rloop 0.34", headline=True),
    Row("call_soon_bulk", "`call_soon`, 100,000 in bulk", 0.46, "rloop 0.46"),
    Row("sleep_zero", "`sleep(0)`", 0.53, "rloop 0.53"),
    Row("task", "`create_task` + await", 0.70, "rloop 0.70", headline=True),
    Row("gather", "`gather` of 50,000", 0.85, "rloop 0.85"),
    Row("future", "a future set by `call_soon` and awaited", 0.58, "rloop 0.58"),
    Row("queue", "`Queue(1)` hand-over", 0.72, "rloop 0.72"),
    Row("timeout", "`asyncio.timeout` around a `sleep(0)`", 0.65, "blazio 0.64"),
    Row("timers_cancelled", "50,000 timers set and cancelled", 0.40, "rloop 0.40"),
    Row("sleeps_fired", "20,000 sleeps fired", 0.90, "rloop 0.92"),
    Row("threadsafe_thread", "`call_soon_threadsafe` from another thread", 0.60),
    Row("threadsafe_own", "`call_soon_threadsafe` from the loop's own thread, chained", 0.60),
    Row("aiohttp", "aiohttp server, plaintext, 100 connections", 0.97, headline=True),
    Row("uvicorn", "uvicorn + Starlette, plaintext, 100 connections", 0.97),
    Row("memory", "memory per idle connection (2,000 open)", 1.00, metric="memory_kib"),
)
