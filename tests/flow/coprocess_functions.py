"""What test_coprocess.py runs in coprocesses, which import it from here; the standard library is enough for it."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any


class Picky(Exception):
    """Cannot be unpickled: its arguments are not those of its constructor."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status} {body}")


class Speechless(Exception):
    """Has no text, and cannot be pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __str__(self) -> str:
        raise ValueError("no words")


class Explosive:
    """Can be pickled, and then not unpickled."""

    def __reduce__(self) -> Any:
        return explode, ()


class Opened:
    """Where it is unpickled, it is whether that is in the main thread."""

    def __reduce__(self) -> Any:
        return in_main_thread, ()


class Packed:
    """Where it is unpickled, it is whether it was pickled in the main thread."""

    def __reduce__(self) -> Any:
        return bool, (in_main_thread(),)


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def explode() -> None:
    raise ValueError("boom")


def echo(value: object) -> object:
    return value


def length(value: bytes) -> int:
    return len(value)


def zeros(count: int) -> bytes:
    return bytes(count)


def opened(count: int) -> tuple[bytes, Opened]:
    return bytes(count), Opened()


def note(path: str, text: str) -> str:
    """Add a line to the file."""
    with open(path, "a") as file:
        file.write(f"{text}\n")
    return text


def wait(pipe: str) -> int:
    """Say that it has begun, by a file beside the pipe, and wait until there is a byte in the pipe."""
    with open(f"{pipe}.begun", "w"):
        pass
    with open(pipe, "rb", buffering=0) as file:
        return len(file.read(1))


def compute(path: str) -> None:
    """Write its process id to the file, in one step, and compute for ever."""
    begin(path)
    while True:
        pass


def compute_alone(path: str) -> int:
    """The same with the interpreter's lock held, for hours."""
    begin(path)
    return sum(range(10**13))


def begin(path: str) -> None:
    with open(f"{path}.part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{path}.part", path)


def fail(text: str) -> None:
    error = OSError(2, text)
    error.add_note("a note")
    raise error


def fail_picky() -> None:
    raise Picky(429, "slow down")


def fail_locked() -> None:
    error = KeyError("locked")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


def fail_speechless() -> None:
    raise Speechless


def stop() -> None:
    raise StopIteration("no more")


def give_lock() -> Any:
    return threading.Lock()


def give_explosive() -> Explosive:
    return Explosive()


def kill(number: int) -> None:
    os.kill(os.getpid(), number)


def end(exitcode: int) -> None:
    os._exit(exitcode)


def leave(exitcode: int) -> None:
    sys.exit(exitcode)


def descriptors() -> set[str]:
    """What the process has open, but for the directory that tells."""
    return {
        path
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(link := f"/proc/self/fd/{name}") or os.path.islink(link)
        if not (path := os.readlink(link)).startswith("/proc/")
    }


def modules() -> dict[str, str]:
    """Where what is imported came from."""
    return {name: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}
