"""What the tests of ingestion share: a corpus, the whole content of a store, an ingestion that dies."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unwait.documents.store import Store, open_store

CHILD = Path(__file__).with_name("ingest_child.py")
WORDS = ["river", "stone", "cloud", "amber", "falcon", "winter", "harbour", "violin", "copper", "meadow"]
WORDS += ["lantern", "orchid"]


def prose(seed: int, sentences: int = 6) -> str:
    """Sentences that are the same for a seed, and differ from those of another."""
    return " ".join(
        f"{WORDS[(seed + n) % 12].title()} {WORDS[(seed * 7 + n * 5) % 12]} number {seed}-{n} "
        f"meets {WORDS[(seed * 3 + n) % 12]}."
        for n in range(sentences)
    )


def write_corpus(folder: Path, documents: int = 6, sections: int = 3, variant: str = "") -> None:
    """Markdown files with headings, each section a few sentences; of another variant other ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        parts = [f"# Title {number}"]
        for section in range(sections):
            parts += [f"## Section {section}", f"{prose(100 * number + section)} {variant}".strip()]
        (folder / f"doc{number}.md").write_text("\n\n".join(parts) + "\n")


async def dump(address: str) -> dict[str, Any]:
    """All that a store holds but times and the numbers of runs, to be compared with another."""
    async with open_store(address) as store:
        documents = {}
        async for listed in store.documents():
            document = await store.document(listed.uri)
            assert document is not None
            documents[listed.uri] = {
                **{
                    name: getattr(document, name)
                    for name in ("origin", "title", "format", "digest", "summary", "metadata", "text")
                },
                "versions": document.versions,
                "chunks": list(document.chunks),
                "vectors": document.vectors.tobytes(),
                "records": list(document.records),
            }
        return {
            "documents": documents,
            "failures": [asdict(failure) async for failure in store.failures()],
            "settings": await store.settings(),
            "found": await _found(store),
        }


async def _found(store: Store) -> Any:
    """What searches see, so that indexes and what they index agree."""
    from unwait.documents.model import Filter

    by_text, _ = await store.find("river falcon winter title", None, "", 10_000, Filter())
    return sorted((hit.uri, hit.chunk, round(hit.score, 6)) for hit in by_text)


def logged(log: Path, what: str) -> set[str]:
    """What a child "asked" of models, or whose answer it "kept"."""
    lines = log.read_text().splitlines() if log.exists() else []
    return {name for kind, name in map(str.split, lines) if kind == what}


async def run_child(
    die: dict[str, Any] | None, options: dict[str, Any], log: Path, *, kill_after: float | None = None
) -> int:
    """Ingest in a process of its own, which kills itself as `die` says or is killed; its exit code.

    To be called on unwait's loop: on asyncio's, the `kill` of one that has just ended may cost its exit code.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CHILD),
        json.dumps({"die": die, "options": options, "log": str(log)}),
        env={**os.environ, "OPENAI_API_KEY": "sk-test-0123456789abcdef"},
        stderr=asyncio.subprocess.PIPE,
    )
    if kill_after is not None:
        try:
            await asyncio.wait_for(process.wait(), kill_after)
        except TimeoutError:
            with suppress(ProcessLookupError):  # it has just ended
                process.kill()
    _, said = await process.communicate()
    assert process.returncode is not None
    assert process.returncode in (0, -9), said.decode()
    return process.returncode
