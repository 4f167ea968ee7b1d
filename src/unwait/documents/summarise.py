"""Summaries by a chat model: in one call what fits into it, else the parts first, and then a summary of these."""

from __future__ import annotations

from collections.abc import Sequence

from unwait.documents.finished import Finished, each
from unwait.documents.model import Chunk, digest
from unwait.documents.models import Chat
from unwait.documents.prompts import AS_DATA, quoted, windows

_WINDOW = 24_000  # characters of a call
_TOKENS = 300  # of a summary
_LONGEST = 4000  # characters of a part's summary: of these, several always fit into a call

_SYSTEM = f"""You summarise documents for people who decide by the summary whether to read the document.
Say in two to four plain sentences what it is about and what it holds, in the language of the document.
Answer with the summary alone: no heading, no list, nothing about yourself.
{AS_DATA}"""
_PART = "This is part {number} of {count} of a document. Summarise this part."
_PARTS = "These are the summaries of the parts of a document, in their order. Summarise the document."
_WHOLE = "Summarise this document."


class ChatSummariser:
    """Summarises documents; each call is kept by `finished` as soon as it is answered.

    `version` stands for the model and the prompts.
    """

    def __init__(self, chat: Chat, finished: Finished) -> None:
        self.version = (
            f"{chat.name}:{digest(_SYSTEM, _PART, _PARTS, _WHOLE, str(_WINDOW), str(_TOKENS))[:12]}"
        )
        self._chat = chat
        self._finished = finished

    async def summarise(self, uri: str, title: str, chunks: Sequence[Chunk]) -> str:
        """A summary of some sentences; raises ClientError where the model gives none."""
        texts = [window.text for window in windows(chunks, _WINDOW)]
        task = _WHOLE
        while len(texts) > 1:
            count = len(texts)

            async def part(numbered: tuple[int, str], task: str = _PART, count: int = count) -> str:
                number, text = numbered
                return await self._ask(uri, task.format(number=number, count=count), title, text)

            found = await each(part, enumerate(texts, 1))
            texts = _joined([summary[:_LONGEST] for summary in found])
            task = _PARTS
        if not texts:
            return ""
        return await self._ask(uri, task, title, texts[0])

    async def _ask(self, uri: str, task: str, title: str, text: str) -> str:
        messages = [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": f"{task}\n{quoted(title, text)}"},
        ]
        answer = await self._finished.complete(uri, "summary", self._chat, messages, max_tokens=_TOKENS)
        return answer.strip()


def _joined(summaries: Sequence[str]) -> list[str]:
    """The summaries put together, as many as fit into a call."""
    texts: list[str] = []
    for summary in summaries:
        if texts and len(texts[-1]) + len(summary) + 2 <= _WINDOW:
            texts[-1] += f"\n\n{summary}"
        else:
            texts.append(summary)
    return texts
