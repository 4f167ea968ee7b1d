"""What the options of `unwait fetch` mean, and what is wrong with them."""

from __future__ import annotations

import contextlib
import math
import os
import re
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from unwait.flow.journal import JournalError
from unwait.flow.journal_reader import JournalReader
from unwait.flow.rates import Rate
from unwait.flow.retry import Retry, RetryBudget
from unwait.web.cache import Cache
from unwait.web.connector import check_headers
from unwait.web.many import ClientOptions, tasks, worthwhile

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_VARIABLE = re.compile(r"\$(?:\$|([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")
_FILES_BESIDE = 64  # that a process has open anyway


@dataclass(frozen=True, slots=True)
class Job:
    """What both kinds of job are told."""

    limit: int | Literal["auto"]
    journal: Path | None
    resume: bool
    progress: bool | None
    policy: Retries
    options: ClientOptions

    @property
    def tasks(self) -> int:
        """How many requests there may be at the same time."""
        return tasks(self.limit)


class Retries(Retry):
    """The policy of a command: it counts, of the attempts it decided on, those answered 429."""

    def __init__(self, retries: int) -> None:
        super().__init__(retries, on=self._decide, budget=RetryBudget())
        self.refused = 0

    def _decide(self, error: BaseException) -> bool:
        self.refused += str(error) == "HTTP 429"
        return worthwhile(error)


def bad(problem: str, option: str) -> typer.BadParameter:
    return typer.BadParameter(problem, param_hint=option)


def size(text: str) -> int:
    """Bytes: `50M` is 50 MiB."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if unit not in _UNITS or not number.isascii() or not number.isdigit() or int(number) == 0:
        raise bad(f"{text!r} is not a size such as 500K, 50M or 2G", "--max-bytes")
    return int(number) * _UNITS[unit]


def at_once(text: str) -> int | Literal["auto"]:
    """How many requests at the same time."""
    if text == "auto":
        return "auto"
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise bad(f"{text!r} is neither a number above 0 nor auto", "--limit")
    return int(text)


def seconds(number: float) -> float:
    """A time-out."""
    if not 0 < number < math.inf:
        raise bad("must be more than 0 seconds", "--timeout")
    return number


def cache(directory: Path | None) -> Cache | None:
    """The cache in the directory, which is made if it is not there."""
    try:
        return None if directory is None else Cache(directory)
    except OSError as error:
        raise bad(f"cannot use {directory}: {error.strerror}", "--cache") from None


def rate(text: str | None, option: str) -> str | None:
    """The text, which is a rate if it is given."""
    if text is not None:
        try:
            Rate.of(text)
        except ValueError as error:
            raise bad(str(error), option) from None
    return text


def headers(lines: Sequence[str]) -> dict[str, str]:
    """Headers as `Name: value`, with `$NAME` and `${NAME}` from the environment and `$$` for a `$`."""
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.strip()
        if not colon or not name:
            raise bad("a header is given as 'Name: value'", "--header")
        value = _VARIABLE.sub(_variable, value.strip())
        try:
            check_headers({name: value})
        except ValueError as error:
            raise bad(str(error), "--header") from None
        found[name] = value
    return found


def _variable(match: re.Match[str]) -> str:
    name = match[1] or match[2]
    if name is None:
        return "$"
    if name not in os.environ:
        raise bad(f"the environment has no variable {name} ($$ stands for a $ itself)", "--header")
    return os.environ[name].strip()


def allow_files(limit: int) -> None:
    """Raise this process's bound of open files, as far as it may, to a socket and a file for each request."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * limit + _FILES_BESIDE
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def check_files(journal: Path | None, output: Path | None, resume: bool, option: str) -> None:
    """Refuse what would write over finished work. `option` is the one that names the output."""
    if resume and journal is None:
        raise bad("there is nothing to resume without --journal FILE", "--resume")
    if journal is not None and output is not None and _same(journal, output):
        raise bad("the output and the journal are the same file", option)
    written = output is not None and output.is_file() and output.stat().st_size > 0
    if not resume:
        if written:
            raise bad(f"{output} has results already: go on with --resume, or name another file", option)
        if journal is not None and _count(journal):
            raise bad(
                f"{journal} holds the results of an earlier run: go on with --resume, or name another file",
                "--journal",
            )
    elif written and journal is not None and not journal.exists():
        raise bad(
            f"{output} has results, and there is no journal {journal} to go on from: name it with --journal, or "
            "another output",
            option,
        )


def _count(journal: Path) -> int:
    """How many items the journal has."""
    with contextlib.suppress(FileNotFoundError):
        if journal.stat().st_size:
            try:
                with JournalReader(journal) as reader:
                    return sum(reader.count())
            except JournalError as error:
                raise bad(str(error), "--journal") from None
    return 0


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
