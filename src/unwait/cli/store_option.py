"""The store that `unwait ingest`, `search` and `documents` work with, and what may be wrong with it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unwait.cli.stdio import abandon_stdout, safe

if TYPE_CHECKING:
    from unwait.documents.model import Filter

Database = Annotated[
    str,
    typer.Option(
        "--db", metavar="FILE|URL", help="The store: a SQLite file, or postgresql://user@host/database."
    ),
]
DEFAULT = "kb.db"
Source = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN",
        help="Only documents whose URI or path is this, or begins so; * stands for anything.",
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Only documents with this metadata; may be given again."),
]


def filter_of(source: str | None, where: Sequence[str]) -> Filter:
    """What `--source` and `--where` ask for."""
    from unwait.documents.model import Filter

    return Filter(pattern_of(source), metadata_of(where))


def pattern_of(source: str | None) -> str | None:
    """A path is meant from here, and the store has whole ones."""
    if source is None or "://" in source or source.startswith(("/", "*")):
        return source
    whole = os.path.abspath(source)
    return f"{whole}/" if source.endswith("/") else whole


def metadata_of(where: Sequence[str]) -> dict[str, str]:
    """The pairs of `--where`."""
    found = {}
    for pair in where:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--where")
        found[key] = value
    return found


def check_exists(command: str, database: str) -> None:
    """Refuse a file that is not there: reading is not to make one."""
    if "://" in database:
        return
    path = Path(database)
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        raise fail(
            command, f"there is no {database}; unwait ingest SOURCE… --db {shlex.quote(database)} makes it"
        )


@contextmanager
def problems_told(command: str) -> Iterator[None]:
    """Tell in a line what is wrong, and end: with the store, a name or an installation by exit code 2.

    And by exit code 1 if stdout cannot be written.
    """
    from unwait.documents.store import StoreError

    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon_stdout()
        where = f": {error.filename}" if error.filename else ""
        raise fail(command, f"{error.strerror or error}{where}", 1) from None
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "unwait":
            raise
        hint = "" if "pip install" in str(error) else ': pip install "unwait[documents]"'
        raise fail(command, f"{error}{hint}") from None
    except (StoreError, ValueError) as error:
        raise fail(command, str(error)) from None
    except Exception as error:
        # Not imported for this: where there was no client, there is none of its errors.
        errors = sys.modules.get("unwait.web.errors")
        if errors is None or not isinstance(error, errors.ClientError):
            raise
        raise fail(command, str(error)) from None


def fail(command: str, problem: str, code: int = 2) -> typer.Exit:
    """Tell the problem on stderr, without secrets; what this returns is to be raised."""
    from unwait.flow.faults import scrub

    print(f"unwait {command}: {safe(scrub(problem))}", file=sys.stderr)
    return typer.Exit(code)
