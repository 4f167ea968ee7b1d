"""`unwait journal`: what a run's journal holds."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from unwait.cli.stdio import tolerate_characters, written
from unwait.flow.codec import codec_named
from unwait.flow.faults import describe
from unwait.flow.journal import JournalError
from unwait.flow.journal_reader import Item, JournalReader
from unwait.web.text import printable

EXAMPLES = """
A journal may be read while a run writes it, and after a run was killed: reading changes nothing in it.

Exit code: 0 all well, 1 with `failed` if there are failed items, 2 bad usage or a file that is no journal.

Examples:

\b
  unwait journal show run.db                   whose it is, how much is done, what failed
  unwait journal failed run.db --json          each failed item, one JSON object a line
  unwait journal export run.db -o out.jsonl    each item with its value
"""
EXPORT = """
Each line is {"key":…, "ok":…, "value":…, "error":…, "attempts":…, "waited":…, "elapsed":…}, in the order in which
the items ended; times are in seconds. What a stage of a pipeline saved has its name as "stage". NaN and infinite
numbers are written as Python's json does.

What a codec other than JSON wrote is not decoded: "value" is null, and a further "encoded" has the bytes in base64.
--unpickle decodes pickled values, which runs whatever code the file names: use it only on files that nobody but you
can have written. Its values that JSON cannot hold are written as their repr.

Examples:

\b
  unwait journal export run.db | jq -r 'select(.ok) | .value.title'
  unwait journal export run.db --failed -o again.jsonl
"""

app = typer.Typer(
    no_args_is_help=True,
    epilog=EXAMPLES,
    help="Show, list and export what the journal of a run holds.",
    rich_markup_mode=None,
)
File = Annotated[Path, typer.Argument(metavar="FILE", help="The journal.")]


@app.command(epilog=EXAMPLES)
def show(file: File) -> None:
    """Whose journal it is, what is in it, and each run."""
    with _opened(file) as journal:
        done, failed = journal.count()
        print(f"journal   {printable(str(file))}")
        print(f"function  {printable(journal.function)}")
        print(f"made      {_moment(journal.created)}")
        if journal.version:
            print(f"version   {printable(journal.version)}")
        print(f"values    {printable(journal.codec)}")
        print(f"items     {done + failed:,}: {done:,} done, {failed:,} failed")
        for stage, saved in journal.stages().items():
            print(f"stage     {printable(stage)}: {saved:,} values saved")
        if failed:
            print("\nfailures by cause")
            for cause in journal.causes():
                print(
                    f"{cause.count:9,}  {printable(cause.kind)}, the latest: {printable(cause.latest)[:160]}"
                )
        print(
            f"\nrun  {'started':19}  {'took':>11}  {'done':>9}  {'failed':>9}  {'reused':>9}  {'items/s':>11}  ended"
        )
        for run in journal.runs():
            ended = (
                "yes" if run.ended else f"running, pid {run.pid}" if run.running else "no: it was interrupted"
            )
            stored = run.done + run.failed
            speed = f"{stored / run.took:,.1f}" if stored and run.took > 0 else "-"
            print(
                f"{run.number:3}  {_moment(run.started)}  {run.took:9,.1f} s  {run.done:9,}  {run.failed:9,}  "
                f"{run.reused:9,}  {speed:>11}  {ended}"
            )


@app.command(epilog=EXAMPLES)
def failed(
    file: File,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """The items that failed, each with its error."""
    found = 0
    with _opened(file) as journal:
        for item in journal.items(failed=True):
            found += 1
            if as_json:
                print(
                    json.dumps(
                        {
                            "key": item.key,
                            "attempts": item.attempts,
                            "error": item.error,
                            "at": datetime.fromtimestamp(item.at).astimezone().isoformat("T", "seconds"),
                        }
                    )
                )
            else:
                attempts = f"{item.attempts} attempt{'' if item.attempts == 1 else 's'}"
                print(
                    f"{_moment(item.at)}  {attempts:>11}  {printable(item.key)}  {printable(item.error or '')}"
                )
    if not found and not as_json:
        print("no item failed")
    raise typer.Exit(1 if found else 0)


@app.command(epilog=EXPORT)
def export(
    file: File,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Write to OUT; without it to stdout.")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed/--all", help="Only the items that failed.")] = False,
    unpickle: Annotated[
        bool, typer.Option("--unpickle", help="Decode pickled values. This runs code that the file names.")
    ] = False,
) -> None:
    """The items and their values as JSON Lines."""
    if output is not None and output.exists() and file.exists() and output.samefile(file):
        raise typer.BadParameter("that is the journal itself", param_hint="--output")
    with _opened(file) as journal, written(output, _fail) as out:
        values = _values(journal.codec, unpickle)
        for item in journal.items(failed=failed):
            line = {
                "key": item.key,
                **({"stage": item.stage} if item.stage else {}),
                "ok": item.ok,
                **values(item),
                "error": item.error,
                "attempts": item.attempts,
                "waited": round(item.waited, 6),
                "elapsed": round(item.elapsed, 6),
            }
            out.write(json.dumps(line, default=repr) + "\n")


def _values(codec: str, unpickle: bool) -> Callable[[Item], dict[str, Any]]:
    if codec == "json" or (codec == "pickle" and unpickle):
        if codec == "pickle":
            # What was pickled is imported from where the program is, and that is here, not beside this command.
            sys.path.insert(0, os.getcwd())
        decode = codec_named(codec).decode

        def decoded(item: Item) -> dict[str, Any]:
            try:
                return {"value": None if item.data is None else decode(item.data)}
            except Exception as error:
                _fail(f"cannot decode the value of {printable(item.key)}: {describe(error)}")

        return decoded

    def encoded(item: Item) -> dict[str, Any]:
        if item.data is None:
            return {"value": None}
        return {"value": None, "encoded": base64.b64encode(item.data).decode()}

    return encoded


@contextmanager
def _opened(file: Path) -> Iterator[JournalReader]:
    tolerate_characters()
    try:
        with JournalReader(file) as journal:
            yield journal
    except JournalError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"unwait journal: {message}", file=sys.stderr)
    raise typer.Exit(2)


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at).isoformat(" ", "seconds")
