"""`unwait fetch`: many URLs at once, a row for each, totals."""

from __future__ import annotations

import io
import json
import math
import resource
import sys
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer

import unwait
from unwait.cli.report import Progress, print_table, totals
from unwait.web.fetch import Fetched, fetch_as_completed

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

EPILOG = """
Each distinct URL is fetched once, however often it is named. A file given with --from has one URL a line;
empty lines and lines that begin with # are skipped.

Exit code: 0 all fetched, 1 some failed, 2 bad usage, 130 interrupted (what was done is shown and saved).

Examples:

\b
  unwait fetch https://a.example https://b.example
  unwait fetch --from urls.txt -o pages --limit 50
  grep -o 'https://[^"]*' page.html | unwait fetch --from - --json
"""


def fetch(
    urls: Annotated[list[str] | None, typer.Argument(metavar="URL", help="What to fetch.")] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE", help="Read more URLs from FILE; - is stdin."),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Save each body to a file in DIR; without it none is kept."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many at the same time.")] = 100,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For one URL, body included.")] = 60.0,
    max_bytes: Annotated[
        str, typer.Option(metavar="SIZE", help="The largest body: bytes, or with K, M or G (powers of 1024).")
    ] = "50M",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line as each is done, in place of the table.")
    ] = False,
) -> None:
    """Fetch many URLs at once; one that fails costs the others nothing."""
    if not 0 < timeout < math.inf:
        raise typer.BadParameter("must be more than 0 seconds", param_hint="--timeout")
    largest = _bytes(max_bytes)
    wanted = list(dict.fromkeys([*(urls or []), *(_read_urls(source) if source else [])]))
    if not wanted:
        raise typer.BadParameter("no URLs given", param_hint="URL")
    if directory is not None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise typer.BadParameter(
                f"cannot make {directory}: {error.strerror}", param_hint="--output"
            ) from None
    _allow_files(min(limit, len(wanted)))
    # What a server sends must not fail on a terminal that cannot show it.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")

    results: list[Fetched] = []
    started = time.perf_counter()
    interrupted = False
    with Progress(len(wanted), quiet=as_json and sys.stdout.isatty()) as progress:
        fetching = fetch_as_completed(
            wanted, limit=limit, timeout=timeout, max_bytes=largest, directory=directory
        )
        try:
            unwait.run(_collect(fetching, results, progress, as_json))
        except KeyboardInterrupt:
            interrupted = True
    took = time.perf_counter() - started

    if not as_json:
        print_table(sorted(results, key=lambda result: result.index))
    line = totals(results, took)
    if interrupted:
        line = f"interrupted, {len(wanted) - len(results)} of {len(wanted)} not done; {line}"
    print(line, file=sys.stderr if as_json else sys.stdout)
    if interrupted:
        raise typer.Exit(130)
    raise typer.Exit(1 if any(result.error for result in results) else 0)


async def _collect(
    fetching: AsyncGenerator[Fetched, None], results: list[Fetched], progress: Progress, as_json: bool
) -> None:
    async with aclosing(fetching):
        async for result in fetching:
            results.append(result)
            if as_json:
                print(_json_line(result), flush=True)
            progress.add(result)


def _json_line(result: Fetched) -> str:
    return json.dumps(
        {
            "url": result.url,
            "ok": result.error is None,
            "status": result.status,
            "error": result.error,
            "size": result.size,
            "elapsed": round(result.elapsed, 6),
            "path": None if result.path is None else str(result.path),
            "begins": result.begins,
        }
    )


def _read_urls(source: str) -> Iterable[str]:
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"cannot read {source}: {error.strerror}", param_hint="--from") from None
    lines = (line.strip() for line in content.decode("utf-8-sig", "replace").splitlines())
    return (line for line in lines if line and not line.startswith("#"))


def _bytes(text: str) -> int:
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if unit not in _UNITS or not number.isascii() or not number.isdigit() or int(number) == 0:
        raise typer.BadParameter(f"{text!r} is not a size such as 500K, 50M or 2G", param_hint="--max-bytes")
    return int(number) * _UNITS[unit]


def _allow_files(limit: int) -> None:
    """Raise this process's bound of open files, as far as it may, to a socket and a file for each fetch."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * limit + 64
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
