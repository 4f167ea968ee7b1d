"""What `unwait fetch` shows: progress while it runs, a table and totals at its end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType

import rich.progress
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from unwait.web.fetch import Fetched
from unwait.web.text import printable


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


def print_table(results: Sequence[Fetched]) -> None:
    """A row a result: status, size, time, URL, and the first characters of the body or what went wrong."""
    # Not rich's own Table: it takes longer to lay out thousands of rows than the fetching took.
    console = Console(highlight=False)
    urls = [printable(result.url) for result in results]
    widest = max(map(cell_len, urls), default=0)
    if console.is_terminal:
        widest = min(widest, max(20, console.width // 2))
    head = f"{'status':6}  {'size':>10}  {'time':>9}  {'URL':{widest}}  begins with"
    console.print(Text(head, style="bold"), soft_wrap=True)
    for result, url in zip(results, urls, strict=True):
        # As Text, never as str: a URL or a body may hold what rich takes for markup.
        status, size = ("-", "-") if result.status is None else (str(result.status), size_text(result.size))
        row = Text.assemble(
            (f"{status:6}", "red" if result.error else "green"),
            f"  {size:>10}  {result.elapsed:7.3f} s  {url}{' ' * (widest - cell_len(url))}  ",
        )
        if result.error is not None:
            row.append(result.error, "red").append(f"  {result.begins}".rstrip(), "dim")
        else:
            row.append(result.begins)
            if console.is_terminal:
                row.truncate(max(console.width, cell_len(url) + 42), overflow="ellipsis")
        row.rstrip()
        console.print(row, soft_wrap=True)


def totals(results: Sequence[Fetched], took: float) -> str:
    """The line under the table; `took` is the wall time in seconds.

    What a one-by-one run would have taken is the sum of the times of all URLs, failed ones too.
    """
    failed = sum(result.error is not None for result in results)
    size = size_text(sum(result.size for result in results))
    waits = sum(result.elapsed for result in results)
    speed_up = f", {waits / took:.1f} times as long" if waits > took else ""
    return (
        f"{len(results) - failed} fetched, {failed} failed, {size} in {took:.2f} s; "
        f"one by one {waits:.2f} s (the sum of the waits){speed_up}"
    )
