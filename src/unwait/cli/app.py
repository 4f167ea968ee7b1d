"""The typer application: what `unwait --help` shows, and the way to each command but `run`'s fast path."""

from __future__ import annotations

from typing import Annotated

import typer

import unwait
from unwait.cli import documents, fetch, ingest, journal, search
from unwait.cli.run import SUMMARY
from unwait.cli.run import run as run_program

EXAMPLES = """
Examples:

\b
  unwait run app.py --port 8000          any asyncio program on the fast loop
  unwait run -m package.module           as python -m
  unwait fetch https://a.example https://b.example
  unwait fetch --from urls.txt -o pages  many URLs at once, each body to a file
  unwait fetch --requests calls.jsonl -o results.jsonl
  unwait journal show results.jsonl.journal
  unwait ingest handbook.pdf notes/      documents into kb.db, to be searched
  unwait search "how do I rotate a key"
  unwait documents list

unwait COMMAND --help tells the rest.
"""

app = typer.Typer(
    name="unwait",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="I/O-bound Python that stops waiting: asyncio on a faster loop, and commands that use it.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"unwait {unwait.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command(
    "run",
    help=SUMMARY,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def run(arguments: Annotated[list[str] | None, typer.Argument(metavar="SCRIPT [ARGS]...")] = None) -> None:
    run_program(arguments or [])


app.command("fetch", epilog=fetch.EPILOG)(fetch.fetch)
app.add_typer(journal.app, name="journal")
app.command("ingest", epilog=ingest.EPILOG)(ingest.ingest)
app.command("search", epilog=search.EPILOG)(search.search)
app.add_typer(documents.app, name="documents")
