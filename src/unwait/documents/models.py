"""What the pipeline asks of models: vectors for texts, answers to messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from unwait.web.errors import StatusError

if TYPE_CHECKING:
    from unwait.documents.model import Vectors


class ModelUnusable(StatusError):
    """The model answers nobody: its key, its name, its address or the account is wrong. It ends a run."""


class Embedder(Protocol):
    """Makes vectors. Texts of the same words have the same vector, whatever else is in the call."""

    name: str
    """The space of its vectors: "wordllama-256", "openai:text-embedding-3-small". Spaces don't mix."""

    paid: bool
    """Whether its calls cost something: those are kept as soon as they are finished."""

    at_once: int
    """How many calls may run at the same time."""

    batch: int
    """The most texts of a call."""

    batch_tokens: float
    """The most tokens of a call, by its own estimate."""

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """An array of shape (texts, dimensions), float32, each row of unit length (or zero for no words at all)."""
        ...

    def tokens(self, text: str) -> float:
        """About how many tokens the text has."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a chat model said, and what it took."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chat(Protocol):
    """Answers messages ({"role": …, "content": …}), as text or, with `schema`, as JSON that agrees with it."""

    name: str
    """"openai:gpt-4o-mini"."""

    async def complete(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        schema: Mapping[str, Any] | None = None,
        max_tokens: int = 1024,
    ) -> Answer:
        """Ask once; retries for what may be tried again are made below. Raises ClientError where there is no answer."""
        ...
