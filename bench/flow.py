"""What unwait.flow costs and keeps to, beside its peers: one cell, its contenders one after another.

    python flow.py CELL CONTENDER… [--port N] [--short]

prints one line of JSON: contender → metrics, or {"unsupported": why}, or {"failed": why}. All run on unwait's
loop, in this process, so that the ratio is of what they do and not of the loops below them. CPU is user and
system time of the whole process, all its threads. The garbage collector stays on, as it is in programs, and
has nothing left from one contender when the next begins.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from flow_cells import FLOW_CELLS
from flow_limits import measure_rate, measure_tokens
from flow_peers import FETCHES, LIMIT, MAPS, RETRIES, STREAMS, Func, map_unwait, need
from loops import Unsupported, new_loop

WARM_UP = 20  # the share of the work that is done first, untimed: one part in so many
BODY_SIZE = 13


async def nothing(item: int) -> int:
    return item


async def wait_once(item: int) -> int:
    await asyncio.sleep(0)
    return item


async def record(item: int) -> dict[str, object]:
    return {"id": item, "status": 200, "text": "as short as an answer can be"}


async def cpu_of_map(
    way: Callable[[Func, Iterable[Any]], Awaitable[list[Any]]], func: Func, count: int
) -> Any:
    await way(func, range(count // WARM_UP))
    gc.collect()
    before = time.process_time()
    results = await way(func, range(count))
    spent = time.process_time() - before
    assert len(results) == count
    assert results[:: count - 1] == [await func(0), await func(count - 1)]
    return {"cpu_us": spent / count * 1e6}


async def measure_map(contender: str, short: bool) -> Any:
    return await cpu_of_map(MAPS[contender], nothing, 20_000 if short else 200_000)


async def measure_map_wait(contender: str, short: bool) -> Any:
    return await cpu_of_map(MAPS[contender], wait_once, 5_000 if short else 50_000)


async def peak_kib(contender: str, count: int) -> int:
    """The most memory that this process ever had, after that many items went through."""
    way, _ = STREAMS[contender]
    seen = 0
    async for _value in way(nothing, (number for number in range(count))):
        seen += 1
    assert seen == count
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def peak_of_new_process(contender: str, count: int) -> int:
    arguments = [sys.executable, __file__, "peak", contender, "--count", str(count)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return int(done.stdout)


async def measure_memory(contender: str, short: bool) -> Any:
    stream, most = STREAMS[contender]
    async for _ in stream(nothing, iter(range(1))):
        pass  # unsupported, or not
    count = 50_000 if short else most
    grown = peak_of_new_process(contender, count) - peak_of_new_process(contender, 10_000)
    return {"items": count, "grown_mib": max(0, grown) / 1024}


async def measure_fetch(contender: str, short: bool, port: int) -> Any:
    count = 500 if short else 5_000
    # Each URL is another, for identical requests in flight may be made one.
    urls = [f"http://127.0.0.1:{port}/?item={number}" for number in range(count)]
    fetch = FETCHES[contender]
    await fetch(urls[: count // WARM_UP])
    times = []
    for _ in range(1 if contender == "httpx" else 3):
        # It takes a fraction of a second, in which others may be at work: the best of three.
        gc.collect()
        began, before = time.perf_counter(), time.process_time()
        bodies = await fetch(urls)
        times.append((time.perf_counter() - began, time.process_time() - before))
        assert list(map(len, bodies)) == [BODY_SIZE] * count
    took, spent = map(min, zip(*times, strict=True))
    return {"per_second": count / took, "cpu_us": spent / count * 1e6}


async def measure_journal(contender: str, short: bool) -> Any:
    count = 5_000 if short else 50_000
    with tempfile.TemporaryDirectory(prefix="unwait-bench-") as scratch:
        numbers = itertools.count()

        async def journalled(func: Func, items: Iterable[Any]) -> list[Any]:
            path = Path(scratch) / f"{next(numbers)}.db"
            return list(await need("unwait:map")(func, items, limit=LIMIT, progress=False, journal=path))

        async def line_appended(func: Func, items: Iterable[Any]) -> list[Any]:
            path = Path(scratch) / f"{next(numbers)}.jsonl"

            async def call(item: Any) -> Any:
                value = await func(item)
                with path.open("a") as file:
                    file.write(json.dumps([item, value]) + "\n")
                return value

            return await map_unwait(call, items)

        ways = {"unwait": journalled, "no journal": map_unwait, "line appended": line_appended}
        return await cpu_of_map(ways[contender], record, count)


async def measure_retry(contender: str, short: bool) -> Any:
    count = 5_000 if short else 50_000
    call = RETRIES[contender](nothing)
    for number in range(count // WARM_UP):
        await call(number)
    gc.collect()
    before = time.process_time()
    for number in range(count):
        await call(number)
    return {"cpu_us": (time.process_time() - before) / count * 1e6}


MEASURES: dict[str, Callable[..., Awaitable[Any]]] = {
    "flow-map": measure_map,
    "flow-map-wait": measure_map_wait,
    "flow-memory": measure_memory,
    "flow-fetch": measure_fetch,
    "flow-rate": measure_rate,
    "flow-tokens": measure_tokens,
    "flow-journal": measure_journal,
    "flow-retry": measure_retry,
}
assert MEASURES.keys() == FLOW_CELLS.keys()


def run(work: Any) -> Any:
    with asyncio.Runner(loop_factory=lambda: new_loop("unwait")) as runner:
        return runner.run(work)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cell", choices=[*MEASURES, "peak"])
    parser.add_argument("contenders", nargs="+")
    parser.add_argument("--port", type=int, help="of the server, for flow-fetch")
    parser.add_argument("--short", action="store_true", help="a tenth of the work")
    parser.add_argument("--count", type=int, help="items, for `peak`")
    options = parser.parse_args()
    if options.cell == "peak":
        print(run(peak_kib(options.contenders[0], options.count)))
        return 0
    extra = {"port": options.port} if FLOW_CELLS[options.cell].server else {}
    found: dict[str, Any] = {}
    for contender in options.contenders:
        try:
            found[contender] = run(MEASURES[options.cell](contender, options.short, **extra))
        except Unsupported as error:
            found[contender] = {"unsupported": str(error)}
        except Exception as error:
            found[contender] = {"failed": f"{type(error).__name__}: {error}"}
        gc.collect()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
