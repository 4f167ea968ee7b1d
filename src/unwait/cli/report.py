"""What `unwait fetch` shows at its end: a table, and totals."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from unwait.web.bulk import Totals
from unwait.web.fetch import Fetched
from unwait.web.text import printable

_CAUSES = 5  # shown


def size_text(size: float) -> str:
    """A number of bytes as people read it: `512 B`, `1.5 KiB`, `20.0 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


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


def totals(results: Sequence[Fetched], took: float, refused: int) -> str:
    """The line under the table; `took` is the wall time in seconds, `refused` counts the 429s that were retried.

    What a one-by-one run would have taken is the sum of the times of all URLs, failed ones too.
    """
    failed = sum(result.error is not None for result in results)
    size = size_text(sum(result.size for result in results))
    fetched = [result for result in results if not result.resumed]
    waits = sum(result.elapsed - result.waited for result in fetched)
    one_by_one = (
        f"; one by one {waits:.2f} s (the sum of the waits), {waits / took:.1f} times as long"
        if waits > took
        else ""
    )
    more = _more(
        len(results) - len(fetched),
        sum(max(0, result.attempts - 1) for result in fetched),
        refused + sum(result.status == 429 for result in fetched),
        sum(result.waited for result in fetched),
    )
    return f"{len(results) - failed} fetched, {failed} failed, {size} in {took:.2f} s{one_by_one}{more}"


def request_totals(totals: Totals, refused: int, took: float) -> str:
    """The lines at the end of a job of requests; the parameters are those of `totals`."""
    report = totals.report
    malformed = ""
    if totals.malformed:
        malformed = f", {totals.malformed} {'line is no request' if totals.malformed == 1 else 'lines are no requests'}"
    more = _more(report.resumed, report.retried, refused + totals.too_many, report.limited)
    lines = [f"{report.done} done, {report.failed} failed{malformed} in {took:.2f} s{more}"]
    lines += [f"{count:6} times {cause}" for cause, count in totals.causes.most_common(_CAUSES)]
    return "\n".join(lines)


def _more(resumed: int, retries: int, refused: int, waited: float) -> str:
    parts = [f"{resumed} from the journal"] if resumed else []
    parts += [f"{retries} {'retry' if retries == 1 else 'retries'}"] if retries else []
    parts += [f"{refused} answered 429"] if refused else []
    parts += [f"{waited:.2f} s in limits and back-off"] if waited >= 0.01 else []
    return f"; {', '.join(parts)}" if parts else ""
