"""`unwait ingest`: documents from wherever they are into a store that can be searched."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from unwait.cli.store_option import DEFAULT, Database, check_exists

EPILOG = """
SOURCE is a file, a directory, a URL, a sitemap, or - for a list of them on stdin, one a line. HTML, Markdown,
reStructuredText, plain text, PDF and JSON Lines are told by their content. What is broken, missing, encrypted, empty
or too large is a failed source with its cause, and costs the others nothing.

Models. Without --embed and --summarise nothing is sent anywhere: static vectors, and summaries made of a document's
own sentences. openai:MODEL is a model of any server that speaks OpenAI's protocol, at --base-url; its key is taken
from OPENAI_API_KEY in the environment, and from nowhere else. What is not said is as in the last run of the store.

Again. Unchanged documents cost no model call; of an edited one only the chunks that changed are embedded. Killed at
any moment and run again, it goes on from there, and pays for no finished model call twice. Other settings do again
what depends on them, and nothing else. --prune removes what the sources named no longer list.

--report writes a line a source as soon as what became of it is stored: {"uri":…, "outcome":"added", "chunks":…,
"embedded":…, "reused":…, "records":…, "seconds":…}. An outcome is added, updated, unchanged, pruned or failed, and
then there are "stage", "kind" and "error".

Exit code: 0 all well, 1 some sources failed, 2 bad usage or a store that cannot be used, 130 interrupted. The first
Ctrl-C finishes what is under way (10 s at most), the second stops at once; what is stored stays.

Examples:

\b
  unwait ingest handbook.pdf notes/ --db kb.db
  unwait ingest https://docs.example.org/sitemap.xml --per-host 4
  unwait ingest https://docs.example.org/guide/ --crawl 3 --prune
  git ls-files '*.md' | unwait ingest - --report rows.jsonl
  unwait ingest docs/ --embed openai:text-embedding-3-small --summarise openai:gpt-4o-mini --tokens 90000/min
  unwait ingest invoices/ --records invoices.py:Invoice --chat openai:gpt-4o-mini --base-url http://localhost:8080/v1
  unwait ingest --retry-failed --db kb.db
"""


class Engine(StrEnum):
    """Where the work is done."""

    LOCAL = "local"
    RAY = "ray"


def ingest(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE", help="Files, directories, URLs, sitemaps; - is stdin."),
    ] = None,
    database: Database = DEFAULT,
    embed: Annotated[
        str | None, typer.Option(metavar="MODEL", help="wordllama (the default) or openai:MODEL.")
    ] = None,
    summarise: Annotated[
        str | None, typer.Option(metavar="MODEL", help="extractive (the default), none or openai:MODEL.")
    ] = None,
    records: Annotated[
        str | None,
        typer.Option(
            metavar="FILE:MODEL", help="Extract what agrees with this pydantic model; none: no longer."
        ),
    ] = None,
    chat: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="What extracts records: openai:MODEL; by default that of --summarise."
        ),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where openai: models are; else OPENAI_BASE_URL.")
    ] = None,
    crawl: Annotated[
        int | None,
        typer.Option(min=0, metavar="DEPTH", help="Follow the links of URLs so deep, within their prefix."),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Of directories, only such files; may be given again."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Of directories, no such files; may be given again."),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where JSON Lines have their text; by default text.")
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The most characters of a chunk; by default 1000.")
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Characters that a chunk shares with the one before."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How much may wait at the same time.")] = 64,
    per_host: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many requests at the same time for one host.")
    ] = 16,
    rate: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="How many calls of each model: 50/s, 500/min; not of pages."),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="RATE", help="How many tokens for each model: 90000/min.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Where much is to be read: how many processes do it; one a core if not said, 0 for none.",
        ),
    ] = None,
    max_bytes: Annotated[
        str,
        typer.Option(metavar="SIZE", help="The largest source: bytes, or with K, M or G (powers of 1024)."),
    ] = "50M",
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove the documents that these sources no longer list.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed before; SOURCE may be left out.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a JSON line for each source, as it happens.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="Here, or shared by actors of Ray.")] = Engine.LOCAL,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="How many actors, with --engine ray.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False,
    progress: Annotated[
        bool | None,
        typer.Option("--progress/--no-progress", help="How far it is, on stderr; by default on a terminal."),
    ] = None,
) -> None:
    """Bring documents into a store: text, chunks, vectors, summaries, records; then `unwait search` finds them."""
    # Here, so that the other commands do not wait for them.
    from unwait.cli import fetch_options as given
    from unwait.cli.ingest_run import Rows, run_ingest

    if not sources and not retry_failed:
        raise given.bad("name files, directories or URLs", "SOURCE")
    if not all(sources or ()):
        raise given.bad("a name is empty", "SOURCE")
    if not sources:
        check_exists("ingest", database)
    if "-" in (sources or ()) and sys.stdin is None:
        raise given.bad("stdin is closed", "SOURCE")
    options = {
        "embed": embed,
        "summarise": summarise,
        "records": records,
        "chat": chat,
        "base_url": base_url,
        "crawl": crawl,
        "include": include or (),
        "exclude": exclude or (),
        "text_field": text_field,
        "chunk_size": chunk_size,
        "overlap": overlap,
        "limit": limit,
        "per_host": per_host,
        "rate": given.rate(rate, "--rate"),
        "tokens": given.rate(tokens, "--tokens"),
        "max_bytes": given.size(max_bytes),
        "processes": processes,
        "prune": prune,
        "retry_failed": retry_failed,
        "engine": engine.value,
        "workers": workers,
        "progress": progress,
    }
    given.allow_files(limit)
    with Rows(report, database) as rows:
        code = run_ingest(sources or [], options, database, rows, as_json)
    raise typer.Exit(code)
