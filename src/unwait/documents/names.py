"""What sources are called, which have been seen, and how what blocks is read without blocking the loop."""

from __future__ import annotations

import asyncio
import os
import re
import time
from array import array
from bisect import bisect_left
from collections.abc import AsyncGenerator, Generator
from hashlib import blake2b
from typing import TypeVar

from yarl import URL

from unwait.web.urls import parse, redact

T = TypeVar("T")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST_ONLY = re.compile(r"^([^/]+//[^/?]+)(?=\?|$)")
_SHARDS = 4096
_BATCH = 64  # items: the loop takes a millisecond for so many; or as many as come in so many seconds
_SECONDS = 0.01


def is_url(text: str) -> bool:
    """Whether it is meant as a URL, of whichever scheme."""
    return _SCHEME.match(text) is not None


def shown(text: str) -> str:
    """The text as UTF-8 and every database can hold it: other bytes, half characters and NUL as escapes."""
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:
        data = text.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def normal(text: str) -> URL:
    """The URL in one spelling, without its fragment. Raises InvalidURL."""
    url = parse(text).with_fragment(None)
    if url.raw_path == "/":
        # http://host and http://host/ are the same.
        url = URL(_HOST_ONLY.sub(r"\1/", str(url)), encoded=True)
    return url


def uri_of(url: URL) -> tuple[str, str | None]:
    """The URI of a page, which has no secrets, and the URL to load it from if that is another."""
    text = str(url)
    bare = text if url.raw_user is None and url.raw_password is None else str(url.with_user(None))
    uri = redact(bare)
    if uri != bare:
        # Two pages that differ in what looks like a secret only are two.
        uri += "#" + blake2b(bare.encode(), digest_size=8).hexdigest()
    return uri, None if uri == text else text


class Seen:
    """The texts that came before: of each, 8 bytes are kept, in sorted shards that grow without a pause."""

    def __init__(self) -> None:
        self._shards: dict[int, array[int]] = {}

    def __contains__(self, text: str) -> bool:
        number = _number(text)
        shard = self._shards.get(number % _SHARDS, ())
        index = bisect_left(shard, number)
        return index < len(shard) and shard[index] == number

    def add(self, text: str) -> bool:
        """Whether it is new."""
        number = _number(text)
        shard = self._shards.setdefault(number % _SHARDS, array("Q"))
        index = bisect_left(shard, number)
        if index < len(shard) and shard[index] == number:
            return False
        shard.insert(index, number)
        return True


def _number(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


async def batches(items: Generator[T | None, None, None]) -> AsyncGenerator[list[T], None]:
    """The items of a generator that blocks, which runs in threads, a batch at a time.

    None stands for nothing: a generator that has nothing to say for long yields it, so that it can be stopped.
    """
    try:
        while (batch := await _in_thread(items)) is not None:
            if batch:
                yield batch
    finally:
        items.close()


async def _in_thread(items: Generator[T | None, None, None]) -> list[T] | None:
    step: asyncio.Future[list[T] | None] = asyncio.get_running_loop().run_in_executor(
        None, lambda: _take(items)
    )
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        # It cannot be closed while it runs.
        await asyncio.wait([step])
        if not step.cancelled():
            step.exception()
        raise


def _take(items: Generator[T | None, None, None]) -> list[T] | None:
    taken: list[T] = []
    ends = time.monotonic() + _SECONDS
    for item in items:
        if item is not None:
            taken.append(item)
        if len(taken) >= _BATCH or time.monotonic() >= ends:
            return taken
    return taken or None
