"""What test_workers.py runs in worker processes, which import it from here; the standard library is enough for it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from typing import Any


class Picky(Exception):
    """Cannot be unpickled: its arguments are not those of its constructor."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status} {body}")
        self.overloaded = True
        self.retry_after = 3.5


class Explosive:
    """Can be pickled, and then not unpickled."""

    def __reduce__(self) -> Any:
        return explode, ()


def explode() -> None:
    raise ValueError("boom")


def square(number: int) -> int:
    return number * number


def pid(_: object) -> int:
    return os.getpid()


def tell_pid_and_sleep(path: str) -> None:
    """Write the process id to a file, in one step, and sleep for longer than any test."""
    with open(f"{path}.part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{path}.part", path)
    time.sleep(1000)


def wait_for(path: str) -> int:
    while not os.path.exists(path):
        time.sleep(0.005)
    return os.getpid()


def wait_for_go(path: str) -> str:
    with open(f"{path}.begun", "w"):
        pass
    wait_for(path)
    return "done"


def end(exitcode: int) -> None:
    os._exit(exitcode)


def kill(number: int) -> str:
    os.kill(os.getpid(), number)
    return "alive"


def leave(exitcode: int) -> None:
    sys.exit(exitcode)


def fail(text: str) -> None:
    error = ValueError(text, 7)
    error.add_note("a note")
    raise error


def fail_picky(_: object) -> None:
    raise Picky(429, "slow down")


def fail_locked(_: object) -> None:
    error = KeyError("locked")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


def give_lock(_: object) -> Any:
    return threading.Lock()


def give_explosive(_: object) -> Explosive:
    return Explosive()


def give_coroutine(_: object) -> Any:
    return asyncio.sleep(0)


def end_with_a_child_left(path: str) -> None:
    """End, but for a child that holds what the process had open, until the file is there."""
    if os.fork() == 0:
        wait_for(path)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def fork_and_return_twice(number: int) -> int:
    """Come back in the process, and in a child that it waits for."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return number


def hang_up(_: object) -> None:
    """Close the pipe to the parent, and everything else."""
    os.closerange(3, 100)


async def asynchronous(number: int) -> int:
    return number
