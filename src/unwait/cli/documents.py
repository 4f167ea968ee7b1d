"""`unwait documents`: what is in a store."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from unwait.cli.stdio import on_one_line, on_terminal, place, safe, tolerate_characters, written
from unwait.cli.store_option import (
    DEFAULT,
    Database,
    Source,
    Where,
    check_exists,
    fail,
    filter_of,
    problems_told,
)

if TYPE_CHECKING:
    from unwait.documents.model import Document, Listed, Record
    from unwait.documents.store import Store

T = TypeVar("T")

EXAMPLES = """
A store may be read while a run writes into it: each document is there whole, or in its old version, or not at all.

Exit code: 0 all well, 1 with `failed` if there are failures and with `show` if there is no such document, 2 bad usage
or a store that cannot be read.

Examples:

\b
  unwait documents list --db kb.db
  unwait documents list --source 'https://docs.example.org/*' --json
  unwait documents show notes/keys.md
  unwait documents show https://docs.example.org/keys.html --text
  unwait documents failed
  unwait documents records --csv -o invoices.csv
"""
RECORDS = """
A line of --jsonl is {"uri":…, "start":…, "end":…, "schema":…, "data":{…}}: the record, and the span of the document's
text it comes from, in characters.

--csv has the columns uri, start and end, then a column for each field of any record; a field of one of these names is
called data.NAME. What is nested is JSON, what is missing is empty. A text that begins with = + - @ or a control
character gets a ' in front: spreadsheets would take it for a formula, and documents may be anybody's.

-o FILE is there under its name when it is whole.

Examples:

\b
  unwait documents records | jq -r .data.total
  unwait documents records --csv -o invoices.csv --source 'invoices/*'
"""
_PREVIEW = 100  # characters of a chunk
_FORMULA = tuple("=+-@\t\r\n")

app = typer.Typer(
    no_args_is_help=True,
    epilog=EXAMPLES,
    help="List, show and export what a store holds, and what failed.",
    rich_markup_mode=None,
)


@app.command("list", epilog=EXAMPLES)
def list_(
    database: Database = DEFAULT,
    source: Source = None,
    where: Where = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """The documents, each with its title and how much there is of it."""
    wanted = filter_of(source, where or ())

    async def shown(store: Store) -> None:
        count = 0
        async for each in store.documents(wanted):
            if as_json:
                print(json.dumps(asdict(each)))
                continue
            if not count:
                print(f"{'saved':19}  {'chunks':>7}  {'characters':>10}  document")
            count += 1
            title = f"  {on_one_line(each.title)}" if each.title else ""
            print(
                f"{_moment(each.saved)}  {each.chunks:7,}  {each.characters:10,}  {on_one_line(each.uri)}{title}"
            )
        if not count and not as_json:
            print("no documents", file=sys.stderr)

    _read(database, shown)


@app.command(epilog=EXAMPLES)
def show(
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="The document: its URL, or the path of its file.")
    ],
    database: Database = DEFAULT,
    text: Annotated[bool, typer.Option("--text", help="Only its text, exactly.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Everything but the vectors, as a JSON object.")
    ] = False,
) -> None:
    """A document: what is known of it, its summary, its chunks."""
    if text and as_json:
        raise typer.BadParameter("has the text already", param_hint="--json")

    async def shown(store: Store) -> bool:
        found = await _find(store, uri)
        if found is None:
            return False
        document, listed = found
        if text:
            _write_text(document.text)
        elif as_json:
            print(json.dumps(_document_json(document, listed)))
        else:
            _show(document, listed)
        return True

    if not _read(database, shown):
        print(
            f"unwait documents: there is no document {on_one_line(uri)} in {on_one_line(database)}",
            file=sys.stderr,
        )
        raise typer.Exit(1)


@app.command(epilog=EXAMPLES)
def failed(
    database: Database = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """The sources that failed in their last run, each with the stage and the cause."""

    async def shown(store: Store) -> int:
        count = 0
        async for each in store.failures():
            count += 1
            if as_json:
                print(json.dumps(asdict(each)))
            else:
                facts = (f"{each.kind} ({each.stage})", each.uri, each.error)
                print(": ".join(map(on_one_line, facts)))
        if not count and not as_json:
            print("nothing failed")
        return count

    raise typer.Exit(1 if _read(database, shown) else 0)


@app.command(epilog=RECORDS)
def records(
    database: Database = DEFAULT,
    as_csv: Annotated[bool, typer.Option("--csv", help="A table, with a header.")] = False,
    as_jsonl: Annotated[
        bool, typer.Option("--jsonl", help="One JSON object a line; this is the default.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to FILE; without it to stdout."),
    ] = None,
    source: Source = None,
    where: Where = None,
    schema: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only the records of this model.")
    ] = None,
) -> None:
    """The records that a model extracted, each with where it comes from."""
    if as_csv and as_jsonl:
        raise typer.BadParameter("is one way to write them, --jsonl another", param_hint="--csv")
    if output is not None and output.exists() and os.path.realpath(output) == os.path.realpath(database):
        raise typer.BadParameter("that is the store itself", param_hint="--output")
    wanted = filter_of(source, where or ())

    async def exported(store: Store) -> None:
        if as_csv:
            await _write_csv(lambda: store.records(wanted, schema), output)
            return
        count = 0
        with written(output, _cannot) as out:
            async for uri, record in store.records(wanted, schema):
                count += 1
                line = {
                    "uri": uri,
                    "start": record.start,
                    "end": record.end,
                    "schema": record.schema,
                    "data": record.data,
                }
                out.write(json.dumps(line) + "\n")
        if not count:
            print("no records", file=sys.stderr)

    _read(database, exported)


async def _write_csv(
    all_records: Callable[[], AsyncIterator[tuple[str, Record]]], output: Path | None
) -> None:
    import csv

    # Once for the columns, once for the rows: however many there are, they are not held.
    columns: dict[str, str] = {}
    count = 0
    async for _, record in all_records():
        count += 1
        for name in record.data:
            columns.setdefault(name, f"data.{name}" if name in ("uri", "start", "end") else name)
    with written(output, _cannot) as out:
        cleaned = safe if output is None and on_terminal() else str
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([cleaned(_cell(name)) for name in ("uri", "start", "end", *columns.values())])
        async for uri, record in all_records():
            if not columns.keys() >= record.data.keys():
                _cannot("the store has changed while it was read; once more, please")
            values = (uri, record.start, record.end, *(record.data.get(name) for name in columns))
            writer.writerow([cleaned(_cell(value)) for value in values])
    if not count:
        print("no records", file=sys.stderr)


def _cell(value: Any) -> str:
    """As a spreadsheet takes it: a text is never a formula."""
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return json.dumps(value, ensure_ascii=False)


async def _find(store: Store, uri: str) -> tuple[Document, Listed] | None:
    from unwait.documents.model import Filter
    from unwait.documents.names import shown

    # A path as it is typed here stands for the file's own name.
    for name in dict.fromkeys((uri, shown(os.path.abspath(uri)), shown(os.path.realpath(uri)))):
        if (document := await store.document(name)) is not None:
            async for listed in store.documents(Filter(source=name)):
                if listed.uri == name:
                    return document, listed
    return None


def _document_json(document: Document, listed: Listed) -> dict[str, Any]:
    return {
        **asdict(listed),
        "digest": document.digest,
        "etag": document.etag,
        "last_modified": document.last_modified,
        "versions": document.versions.to_json(),
        "chunks": [asdict(chunk) for chunk in document.chunks],
        "records": [asdict(record) for record in document.records],
    }


def _show(document: Document, listed: Listed) -> None:
    facts = {
        "document": document.uri,
        "title": document.title,
        "format": document.format,
        "from": document.origin,
        "saved": _moment(listed.saved),
        "characters": f"{listed.characters:,}",
        "chunks": f"{listed.chunks:,}",
        "records": f"{listed.records:,}" if listed.records else "",
        "vectors": document.versions.vectors,
        **{
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in document.metadata.items()
        },
    }
    for name, value in facts.items():
        if value:
            print(f"{on_one_line(name):11} {on_one_line(value)}")
    if document.summary:
        print(f"\nsummary\n  {on_one_line(document.summary)}")
    print("\nchunks")
    for chunk in document.chunks:
        print(f"{chunk.position:5}  {place(chunk.section, chunk.page, chunk.start, chunk.end)}")
        begins = on_one_line(chunk.text[: 4 * _PREVIEW])
        print(f"       {begins[:_PREVIEW]}{'…' if len(begins) > _PREVIEW else ''}")


def _write_text(text: str) -> None:
    if on_terminal():
        # As it is, it could control the terminal.
        print("\n".join(safe(line.expandtabs()) for line in text.split("\n")))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "surrogatepass"))


def _read(database: str, step: Callable[[Store], Awaitable[T]]) -> T:
    """Open the store, do the step, close it."""
    import unwait

    check_exists("documents", database)
    tolerate_characters()

    async def reading() -> T:
        async with unwait.open_store(database) as store:
            return await step(store)

    with problems_told("documents"):
        return unwait.run(reading())


def _cannot(problem: str) -> NoReturn:
    raise fail("documents", problem)


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at).isoformat(" ", "seconds")
