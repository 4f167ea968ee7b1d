"""`unwait search`: the places in a store's documents that answer a question."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from unwait.cli.stdio import on_one_line, on_terminal, place, tolerate_characters
from unwait.cli.store_option import (
    DEFAULT,
    Database,
    Source,
    Where,
    check_exists,
    metadata_of,
    pattern_of,
    problems_told,
)

if TYPE_CHECKING:
    from unwait.documents.search import Hit

EPILOG = """
Two rankings are fused: full text (any of the words, BM25) and vectors (what means the same in other words); what both
have found comes first, as a rule. --mode text needs no vectors, --mode vector no common words.

A line of --json is a hit: {"rank":…, "score":…, "uri":…, "title":…, "section":[…], "page":…, "start":…, "end":…,
"snippet":…, "text":…, "metadata":{…}, "text_rank":…, "vector_rank":…, …}: start and end count the characters of the
document's text, the ranks are the places in the two rankings, null where one has not found it.

What vectors were made with is known to the store; for openai: models, the key is taken from OPENAI_API_KEY.

Exit code: 0 something was found, 1 nothing, 2 bad usage or a store that cannot be read.

Examples:

\b
  unwait search "how do I rotate a key" --db kb.db -k 5
  unwait search timeout --source 'https://docs.example.org/*' --mode text
  unwait search invoices --where lang=en --json | jq -r .uri
"""


class Mode(StrEnum):
    """The rankings that are asked."""

    HYBRID = "hybrid"
    TEXT = "text"
    VECTOR = "vector"


_WIDEST = 100  # columns
_INDENT = "   "
_BOLD, _GREEN, _OFF = "\x1b[1m", "\x1b[32m", "\x1b[0m"
_WORD = re.compile(r"\w+")


def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for, in words.")],
    database: Database = DEFAULT,
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="How many hits.")] = 5,
    source: Source = None,
    where: Where = None,
    mode: Annotated[Mode, typer.Option(help="Which rankings.")] = Mode.HYBRID,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where openai: models are; else as in the last run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Find the places in the documents of a store that answer a question or have the words."""
    import unwait

    metadata = metadata_of(where or ())
    check_exists("search", database)
    tolerate_characters()
    with problems_told("search"):
        hits = unwait.run(
            unwait.search(
                query,
                store=database,
                k=k,
                source=pattern_of(source),
                metadata=metadata,
                mode=mode.value,
                base_url=base_url,
            )
        )
        words = None if as_json or not _may_colour() else _words_of(query)
        for rank, hit in enumerate(hits, 1):
            if as_json:
                print(json.dumps({"rank": rank, **asdict(hit)}))
            else:
                _show(rank, hit, words)
    if not hits:
        print("nothing found", file=sys.stderr)
        raise typer.Exit(1)


def _show(rank: int, hit: Hit, words: re.Pattern[str] | None) -> None:
    """Three lines or more; with `words`, for a terminal that shows colours."""
    # A page's first heading mostly is its title, or that without the name of the site behind it.
    titled = hit.section and hit.section[0] and hit.title.startswith(hit.section[0])
    names = hit.section if titled else (hit.title, *hit.section)
    heading = on_one_line(" > ".join(filter(None, names))) or "(no title)"
    places = {"text": hit.text_rank, "vectors": hit.vector_rank}
    found = ", ".join(f"{name} {place}" for name, place in places.items() if place is not None)
    text = on_one_line(hit.snippet)
    if on_terminal():
        columns = max(20, min(_WIDEST, shutil.get_terminal_size().columns))
        text = textwrap.fill(text, columns, initial_indent=_INDENT, subsequent_indent=_INDENT)
    else:
        text = _INDENT + text
    uri = on_one_line(hit.uri)
    if words is not None:
        heading, uri = f"{_BOLD}{heading}{_OFF}", f"{_GREEN}{uri}{_OFF}"
        text = words.sub(lambda match: f"{_BOLD}{match[0]}{_OFF}", text)
    print(f"{rank}. {heading}")
    print(f"{_INDENT}{uri}, {place((), hit.page, hit.start, hit.end)}")
    print(f"{_INDENT}score {hit.score:.4f} ({found})\n{text}\n")


def _may_colour() -> bool:
    return (
        on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")
    )


def _words_of(query: str) -> re.Pattern[str] | None:
    """Matches the words of the query, and those that begin with one of them."""
    words = sorted({re.escape(word) for word in _WORD.findall(query) if len(word) > 1}, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(words)})\w*", re.IGNORECASE) if words else None
