"""A model of embeddings for the tests, and what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from flaky_models import vector

from unwait.documents.model import Chunk
from unwait.web.errors import StatusError

if TYPE_CHECKING:
    from unwait.documents.model import Vectors


def chunks_of(*texts: str) -> list[Chunk]:
    found, start = [], 0
    for position, text in enumerate(texts):
        found.append(Chunk(f"c{position}", position, start, start + len(text), text))
        start += len(text)
    return found


class Embedder:
    """Notes what it is asked, waits for `gate` if it has one, and raises what `wrong` gives for the texts."""

    name = "test"
    at_once = 4
    batch = 8
    batch_tokens = 1000.0

    def __init__(
        self, *, paid: bool = True, wrong: Callable[[Sequence[str]], Exception | None] | None = None
    ) -> None:
        self.paid = paid
        self.wrong = wrong
        self.asked: list[list[str]] = []
        self.running = self.most = 0
        self.begun = asyncio.Event()
        self.gate: asyncio.Event | None = None

    def tokens(self, text: str) -> float:
        return len(text)

    async def embed(self, texts: Sequence[str]) -> Vectors:
        self.asked.append(list(texts))
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.set()
        try:
            await (self.gate.wait() if self.gate else asyncio.sleep(0))
        finally:
            self.running -= 1
        if self.wrong and (error := self.wrong(texts)):
            raise error
        return np.array([vector(text, 8) for text in texts], np.float32)

    @property
    def texts(self) -> list[str]:
        return sorted(text for asked in self.asked for text in asked)


class Kept:
    """A store in memory, for what is asked of one here."""

    def __init__(self) -> None:
        self.calls: dict[str, bytes] = {}

    async def keep_calls(self, answers: Mapping[str, Mapping[str, bytes]]) -> None:
        for calls in answers.values():
            self.calls.update(calls)

    async def kept_calls(self, keys: Sequence[str]) -> dict[str, bytes]:
        return {key: self.calls[key] for key in keys if key in self.calls}

    async def vectors(self, space: str, digests: Sequence[str]) -> dict[str, Vectors]:
        return {}


def expected(chunks: Sequence[Chunk]) -> Vectors:
    return np.array([vector(chunk.passage, 8) for chunk in chunks], np.float32)


class Refusal(StatusError):
    """A StatusError of this status without a server."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.response: Any = type("Answered", (), {"status": status})()
