"""A chat model without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unwait.documents.models import Answer

Messages = Sequence[Mapping[str, str]]


class Chat:
    """Notes what it is asked, and answers with what `reply` gives, or raises it."""

    def __init__(self, name: str = "chat") -> None:
        self.name = name
        self.asked: list[Messages] = []
        self.schemas: list[Any] = []

    def reply(self, messages: Messages) -> str | Exception:
        raise NotImplementedError

    async def complete(
        self, messages: Messages, *, schema: Mapping[str, Any] | None = None, max_tokens: int = 1024
    ) -> Answer:
        self.asked.append(list(messages))
        self.schemas.append(schema)
        text = self.reply(messages)
        if isinstance(text, Exception):
            raise text
        return Answer(text, 10, 5)
