"""Hundreds of short processes: every exit code and output to its own caller, no zombie, fd or thread left."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

PROCESSES = 200
AT_ONCE = 10
SEED = 5
PIPE = subprocess.PIPE
Children = Callable[[], set[int]]


async def says(number: int) -> str:
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", f"echo {number}; exit {number % 200}", stdout=PIPE
    )
    out, _ = await process.communicate()
    assert out == b"%d\n" % number
    assert process.returncode == number % 200
    return "says"


async def echoes(number: int) -> str:
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    text = b"%d " % number * 30_000
    out, err = await process.communicate(text)
    assert (out, err, process.returncode) == (text, b"", 0)
    return "echoes"


async def ends_at_once(number: int) -> str:
    process = await asyncio.create_subprocess_exec("true", stdin=PIPE)
    assert process.stdin is not None
    try:
        process.stdin.write(bytes(200_000))
        await process.stdin.drain()
    except ConnectionError:  # it may be gone before or after the first bytes
        pass
    process.stdin.close()
    assert await process.wait() == 0
    return "ends at once"


async def is_killed(number: int) -> str:
    process = await asyncio.create_subprocess_exec("sleep", "1000", stdout=PIPE)
    signum = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)[number % 3]
    process.send_signal(signum)
    assert await process.wait() == -signum
    assert process.stdout is not None
    assert await process.stdout.read() == b""
    return "is killed"


async def is_abandoned(number: int) -> str:
    """The caller is cancelled in `communicate`; the process is killed and its exit still waited for."""
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    talking = asyncio.ensure_future(process.communicate(bytes(1_000_000)))
    for _ in range(number % 5):
        await asyncio.sleep(0)
    talking.cancel()
    await asyncio.wait([talking])
    if process.returncode is None:
        process.kill()
    assert process.stdout is not None
    await process.stdout.read()  # a full pipe would keep Python 3.11's `wait` from its end
    assert await process.wait() in (0, -signal.SIGKILL)
    return "is abandoned"


async def cannot_start(number: int) -> str:
    try:
        await asyncio.create_subprocess_exec(f"/nonexistent/{number}", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    except FileNotFoundError:
        return "cannot start"
    raise AssertionError("a program that does not exist was started")


async def test_two_hundred_short_processes(children: Children) -> None:
    before = children()
    kinds = [says, echoes, ends_at_once, is_killed, is_abandoned, cannot_start]
    rng = random.Random(SEED)
    plan = iter([(rng.choice(kinds), number) for number in range(PROCESSES)])
    ended: Counter[str] = Counter()

    async def worker() -> None:
        for kind, number in plan:
            ended[await kind(number)] += 1

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    assert ended.total() == PROCESSES
    assert len(ended) == len(kinds)
    assert children() == before


async def test_exits_that_all_come_at_once(children: Children) -> None:
    """60 processes wait on one pipe and all exit when it closes, each with its own code."""
    before = children()
    read_end, write_end = os.pipe()
    processes = [
        await asyncio.create_subprocess_exec("/bin/sh", "-c", f"read line; exit {number}", stdin=read_end)
        for number in range(60)
    ]
    os.close(read_end)
    waits = [asyncio.ensure_future(process.wait()) for process in processes for _ in range(3)]
    await asyncio.sleep(0)
    os.close(write_end)
    assert await asyncio.gather(*waits) == [number for number in range(60) for _ in range(3)]
    assert children() == before


async def test_cancelled_starts_leave_no_process(children: Children) -> None:
    """Starts cancelled at every stage: a process that had come to life by then ends and is waited for."""
    before = children()
    outcomes: Counter[str] = Counter()
    for number in range(60):
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(sys.executable, "-S", "-c", "", stdin=PIPE, stdout=PIPE)
        )
        for _ in range(number % 6):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        if starting.cancelled():
            outcomes["cancelled"] += 1
        else:
            await starting.result().communicate()
            outcomes["started"] += 1
        for _ in range(500):
            if children() == before:
                break
            await asyncio.sleep(0.01)
        assert children() == before
    assert outcomes["cancelled"] > 0
