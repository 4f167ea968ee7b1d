"""What commands write: text that a terminal may not be able to show, and files that are there when they are whole."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, TextIO


def tolerate_characters() -> None:
    """Have what stdout cannot encode written as escapes: what others wrote must not fail there."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def abandon_stdout() -> None:
    """What stdout could not take goes nowhere: the interpreter would try it once more at its end, and complain."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, sys.stdout.fileno())
        finally:
            os.close(nowhere)


def safe(text: str) -> str:
    """The text with all that could control a terminal, but line breaks, made U+FFFD."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def on_one_line(text: str) -> str:
    """The text with white space joined, and safe for a terminal."""
    return safe(" ".join(text.split()))


def on_terminal() -> bool:
    """Whether stdout is one."""
    try:
        return sys.stdout is not None and sys.stdout.isatty()
    except ValueError:  # closed
        return False


def place(section: Sequence[str], page: int | None, start: int, end: int) -> str:
    """Where in a document a piece of its text is."""
    parts = [on_one_line(" > ".join(section))] if section else []
    parts += [f"page {page}"] if page is not None else []
    return ", ".join([*parts, f"characters {start:,} to {end:,}"])


@contextmanager
def written(output: Path | None, fail: Callable[[str], NoReturn]) -> Iterator[TextIO]:
    """Standard output or the file, which appears under its name only when it is complete.

    `fail` is told what is wrong if it cannot be written. What is no file (a pipe, a device) is written as it goes.
    """
    if output is None:
        yield sys.stdout
        return
    special = output.exists() and not output.is_file()
    part = output if special else output.with_name(f"{output.name}.part")
    try:
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
            if not special:
                file.flush()
                os.fsync(file.fileno())
        if not special:
            part.replace(output)
    except BaseException as error:
        if not special:
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            fail(f"cannot write {output}: {error.strerror}")
        raise
