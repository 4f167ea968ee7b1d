"""Lines read from a descriptor and written to one without ever blocking the loop, whatever is at the other end."""

from __future__ import annotations

import asyncio
import os
import select
import stat
from collections.abc import AsyncGenerator, Callable

_BLOCK = 1 << 18
# A pipe that is writable takes this much without blocking.
_AT_ONCE = select.PIPE_BUF


async def read_lines(descriptor: int, longest: int) -> AsyncGenerator[tuple[int, bytes | None], None]:
    """Each line with its number, from 1, without its line break; None in place of one of more than `longest` bytes.

    Of a line that is too long no more than that is held in memory. Raises OSError where reading fails.
    """
    number = 0
    pieces: list[bytes] = []
    held = 0
    while True:
        block = await _read(descriptor)
        if not block:
            break
        # A file never makes this wait, and the others are to have their turn.
        await asyncio.sleep(0)
        first, *others = block.split(b"\n")
        pieces.append(first)
        held += len(first)
        if not others:
            if held > longest:
                # Only that it is too long is still of interest.
                pieces = []
            continue
        number += 1
        yield number, b"".join(pieces) if held <= longest else None
        for line in others[:-1]:
            number += 1
            yield number, line if len(line) <= longest else None
        pieces = [others[-1]]
        held = len(others[-1])
    if held:
        yield number + 1, b"".join(pieces) if held <= longest else None


async def _read(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    while True:
        await _ready(descriptor, select.POLLIN, loop.add_reader, loop.remove_reader)
        try:
            return os.read(descriptor, _BLOCK)
        except BlockingIOError:
            # Another process that has the same pipe was faster.
            continue


async def write_line(descriptor: int, line: bytes) -> None:
    """Write it whole. Raises OSError where writing fails, BrokenPipeError where nobody reads any more."""
    loop = asyncio.get_running_loop()
    rest = memoryview(line)
    while rest:
        regular = await _ready(descriptor, select.POLLOUT, loop.add_writer, loop.remove_writer)
        try:
            rest = rest[os.write(descriptor, rest if regular else rest[:_AT_ONCE]) :]
        except BlockingIOError:
            continue


async def _ready(
    descriptor: int,
    event: int,
    add: Callable[..., None],
    remove: Callable[[int], bool],
) -> bool:
    """Wait until it can be read or written; whether it always can, as a file can."""
    poll = select.poll()
    poll.register(descriptor, event)
    if poll.poll(0):
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    ready = asyncio.get_running_loop().create_future()
    add(descriptor, _set, ready)
    try:
        await ready
    finally:
        remove(descriptor)
    return False


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
