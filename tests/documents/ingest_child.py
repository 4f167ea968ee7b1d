"""An ingestion that kills itself with SIGKILL at a chosen moment; run by the crash tests as a program.

The argument is JSON: `options` for `ingest`; `die`: {"at": a method of the ingestion or of the store, "when": "before"
or "after" it, "count": at which call of it}, or null; `log`: a file that gets a line for each text and each
conversation that a model was asked, and one for each whose answer is kept. With `processes` among the options, these
come as soon as they can, and before it dies as planned.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import sys
from typing import Any

import unwait
from unwait.documents import pipeline, reading, sqlite_files
from unwait.documents.finished import Finished
from unwait.documents.model import digest
from unwait.documents.openai import OpenAIChat, OpenAIEmbedder
from unwait.documents.store import open_store


def main() -> None:
    task = json.loads(sys.argv[1])
    die, options = task["die"], task["options"]
    if options["processes"]:
        sqlite_files.MANY = reading._MANY = 2
        if die is not None:
            wait_for_processes()
    store = type(open_store(options["store"]))
    log_calls(store, os.open(task["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644))
    if die is not None:
        plan_death(pipeline.Ingestion if die["at"].startswith("_") else store, **die)
    unwait.run(unwait.ingest(**options))


def wait_for_processes() -> None:
    read = pipeline.Ingestion._read

    async def read_when_ready(self: Any, work: Any) -> Any:
        files = getattr(self._store, "_files", None)
        for starting in (self._readers._starting, files and files._starting):
            if starting is not None:
                await asyncio.wait([starting])
        return await read(self, work)

    pipeline.Ingestion._read = read_when_ready  # type: ignore[method-assign]


def plan_death(owner: Any, at: str, when: str, count: int) -> None:
    method = getattr(owner, at)
    left = count

    @functools.wraps(method)
    async def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        mine = left == 0
        if mine and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = await method(*args, **kwargs)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, at, deadly)


def log_calls(store: Any, log: int) -> None:
    embed, ask, complete, keep = (
        OpenAIEmbedder.embed,
        OpenAIChat.complete,
        Finished.complete,
        store.keep_calls,
    )

    def write(what: str, name: str) -> None:
        os.write(log, f"{what} {name}\n".encode())

    def conversation(messages: Any) -> str:
        return digest(*(message["content"] for message in messages))

    async def logged_embed(self: Any, texts: Any) -> Any:
        for text in texts:
            write("asked", digest(text))
        return await embed(self, texts)

    async def logged_ask(self: Any, messages: Any, **rest: Any) -> Any:
        write("asked", conversation(messages))
        return await ask(self, messages, **rest)

    async def logged_complete(
        self: Any, uri: Any, purpose: Any, chat: Any, messages: Any, **rest: Any
    ) -> Any:
        answer = await complete(self, uri, purpose, chat, messages, **rest)
        write("kept", conversation(messages))
        return answer

    async def logged_keep(self: Any, answers: Any) -> Any:
        await keep(self, answers)
        for calls in answers.values():
            for key in calls:
                if key.startswith("embed:"):
                    write("kept", key.rpartition(":")[2])

    OpenAIEmbedder.embed = logged_embed  # type: ignore[method-assign]
    OpenAIChat.complete = logged_ask  # type: ignore[method-assign]
    Finished.complete = logged_complete  # type: ignore[method-assign]
    store.keep_calls = logged_keep


if __name__ == "__main__":
    main()
