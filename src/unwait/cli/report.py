"""What `unwait fetch` shows: progress while it runs, a table and totals at its end."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from types import TracebackType

import rich.progress
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unwait.web.fetch import Fetched
from unwait.web.text import printable

_UNBOUNDED = 100_000  # columns; where no terminal sets a width, no line is cut


def size_text(size: float) -> str:
    """A number of bytes as people read it: `512 B`, `1.5 KiB`, `20.0 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


class Progress:
    """A bar on stderr with what is done and failed; nothing if `quiet` or stderr is not a terminal."""

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self._failed = 0
        self._bar = rich.progress.Progress(
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.stop()

    def add(self, result: Fetched) -> None:
        """Count one more result."""
        self._failed += result.error is not None
        self._bar.update(
            self._task, advance=1, description=f"[red]{self._failed} failed" if self._failed else ""
        )


def print_table(results: Iterable[Fetched]) -> None:
    """A row a result: status, size, time, URL, and the first characters of the body or what went wrong."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("status", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("URL", overflow="fold")
    table.add_column("begins with", overflow="fold")
    for result in results:
        # As Text, never as str: a URL or a body may hold what rich takes for markup.
        good = result.error is None
        begins = Text(result.begins)
        if result.error is not None:
            begins = Text.assemble((result.error, "red"), (f"  {result.begins}".rstrip(), "dim"))
        table.add_row(
            Text("-" if result.status is None else str(result.status), style="green" if good else "red"),
            "-" if result.status is None else size_text(result.size),
            f"{result.elapsed:.3f} s",
            Text(printable(result.url)),
            begins,
        )
    Console(width=None if sys.stdout.isatty() else _UNBOUNDED).print(table)


def totals(results: Sequence[Fetched], took: float) -> str:
    """The line under the table; `took` is the wall time in seconds.

    What a one-by-one run would have taken is the sum of the times of all URLs, failed ones too.
    """
    failed = sum(result.error is not None for result in results)
    size = size_text(sum(result.size for result in results))
    waits = sum(result.elapsed for result in results)
    return (
        f"{len(results) - failed} fetched, {failed} failed, {size} in {took:.2f} s; "
        f"one by one {waits:.2f} s (the sum of the waits), {waits / took:.1f} times as long"
    )
