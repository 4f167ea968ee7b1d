"""What tests ask of processes: which are this one's, whether one has ended, and to wait somewhere."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

END = 10.0  # seconds for a process to be gone whose end has begun


def children() -> set[int]:
    """The processes that this one has begun and not waited for, ended or not."""
    own = str(os.getpid())
    return {pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _stat(pid)[1:2] == [own]}


def gone(pid: int) -> bool:
    """Whether the process has ended. Whose parent has died may stay in the table for ever: nobody asks after it."""
    return _stat(pid)[:1] in ([], ["Z"], ["X"])


def await_end(pid: int) -> None:
    """Wait until the process has ended. Raises TimeoutError."""
    deadline = time.monotonic() + END
    while not gone(pid):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the process {pid} is still there")
        time.sleep(0.002)


class Gate:
    """A pipe at which a function of another process waits, until there is a byte in it.

    It says that it is there by a file beside the pipe, of the same name with ".begun".
    """

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._descriptor = os.open(path, os.O_RDWR)

    async def reached(self) -> None:
        while not os.path.exists(f"{self.path}.begun"):
            await asyncio.sleep(0.002)

    def open(self) -> None:
        os.write(self._descriptor, b"x")

    def close(self) -> None:
        os.close(self._descriptor)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


async def error_of(awaitable: Awaitable[Any]) -> BaseException:
    try:
        value = await awaitable
    except Exception as error:
        return error
    raise AssertionError(f"gave {value!r} in place of an error")


async def pid_in(path: Path) -> int:
    await until(path.exists)
    return int(path.read_text())


def _stat(pid: int) -> list[str]:
    """Its state and the id of its parent; nothing if it is not there."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return []
