"""How far a run is, on stderr: a bar on a terminal, otherwise a line every few seconds, or a callable's business."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from unwait.flow.stats import Report

PATIENCE = 1.0  # seconds that work lasts before a bar appears that nobody asked for
BAR_SECONDS = 0.2
CALL_SECONDS = 0.25
LINE_SECONDS = 5.0
RATE_SECONDS = 5.0  # the rate shown is that of the last so many seconds
LEAST_SECONDS = 0.1  # over less than that a rate says nothing
STYLES = {"failed": "red", "retried": "yellow"}


def write_line(line: str) -> None:
    """A line to stderr; lost if there is no stderr or nobody reads it."""
    _Tolerant(sys.stderr).write(line + "\n")


@contextmanager
def showing(progress: bool | Callable[[Report], None] | None, report: Report, label: str) -> Iterator[None]:
    """While inside, show how far the run of `report` is. Needs a running event loop.

    `progress=True`: a bar if stderr is a terminal and rich is installed, else a line every 5 s and one at the end.
    None: the bar, but only on a terminal, for work that lasts over 1 s, and while no other bar is shown. False:
    nothing. A callable gets the report four times a second and once at the end; if it raises, the loop's exception
    handler is told, and it is not called again.

    Raises TypeError if `progress` is none of these.
    """
    if progress is False:
        yield
        return
    loop = asyncio.get_running_loop()
    display: _Display
    if progress is None or progress is True:
        if _can_show_bar():
            display = _Bar(report, label, loop.time, asked_for=progress is True)
        elif progress:
            display = _Lines(report, label, loop.time)
        else:
            yield
            return
    elif callable(progress):
        display = _Calls(progress, report)
    else:
        raise TypeError(f"progress must be True, False, None or a callable, not {progress!r}")
    ticker = _Ticker(loop, display)
    try:
        yield
    finally:
        ticker.end()


class _Display(Protocol):
    first: float  # seconds until the first tick
    seconds: float  # from one tick to the next

    def tick(self) -> None: ...
    def end(self) -> None: ...


class _Ticker:
    """Calls a display's `tick` now and then, and its `end`, until one of them fails."""

    def __init__(self, loop: asyncio.AbstractEventLoop, display: _Display) -> None:
        self._loop = loop
        self._display = display
        self._on = True
        self._timer = loop.call_later(display.first, self._tick)

    def _tick(self) -> None:
        self._guard(self._display.tick)
        if self._on:
            self._timer = self._loop.call_later(self._display.seconds, self._tick)

    def end(self) -> None:
        self._timer.cancel()
        if self._on:
            self._guard(self._display.end)
        self._on = False

    def _guard(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            self._on = False
            self._loop.call_exception_handler(
                {"message": "showing progress failed, and is off from here on", "exception": error}
            )


class _Calls:
    first = seconds = CALL_SECONDS

    def __init__(self, call: Callable[[Report], None], report: Report) -> None:
        self._call = call
        self._report = report

    def tick(self) -> None:
        self._call(self._report)

    end = tick


class _Lines:
    first = seconds = LINE_SECONDS

    def __init__(self, report: Report, label: str, clock: Callable[[], float]) -> None:
        self._report = report
        self._label = label
        self._pace = Pace(report, clock)

    def tick(self) -> None:
        self._write(progress_texts(self._report, self._pace.measure()))

    def end(self) -> None:
        self._write(final_texts(self._report))

    def _write(self, texts: dict[str, str]) -> None:
        write_line(f"{self._label}: {', '.join(texts.values())}")


class _Bar:
    seconds = BAR_SECONDS

    def __init__(self, report: Report, label: str, clock: Callable[[], float], *, asked_for: bool) -> None:
        self.first = 0.0 if asked_for else PATIENCE
        self._report = report
        self._label = label
        self._pace = Pace(report, clock)
        self._asked_for = asked_for
        self._row: TaskID | None = None

    def tick(self) -> None:
        texts = progress_texts(self._report, self._pace.measure())
        self._join()
        if self._row is not None:
            try:
                _screen.update(self._row, self._report, texts)
            except Exception:
                self.end()  # or stdout and stderr would stay redirected
                raise

    def end(self) -> None:
        if self._asked_for:
            self._join()  # the run was over before the first tick
        if self._row is not None:
            _screen.leave(self._row, self._report, final_texts(self._report))

    def _join(self) -> None:
        if self._row is None:
            self._row = _screen.join(self._label, self._report, only_if_free=not self._asked_for)


class _Screen:
    """The one rich display of the process, with a row for each run shown: two displays would overwrite each other."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # runs may be in several threads
        self._display: Progress | None = None
        self._rows = 0

    def is_foreign(self) -> bool:
        """Whether the program shows something live by itself, in whose way a bar would be."""
        with self._lock:
            return self._display is None and any(
                _unproxied(stream) is not stream for stream in (sys.stdout, sys.stderr)
            )

    def join(self, label: str, report: Report, *, only_if_free: bool) -> TaskID | None:
        """A new row; None if it is wanted on an unused terminal only, and this one is in use."""
        from rich.markup import escape

        with self._lock:
            if only_if_free and (self._display is not None or self.is_foreign()):
                return None
            if self._display is None:
                display = _new_display()
                display.start()
                self._display = display
            self._rows += 1
            return self._display.add_task(escape(label), total=report.total, texts="")

    def update(self, row: TaskID, report: Report, texts: dict[str, str]) -> None:
        display = self._display
        assert display is not None
        _fill(display, row, report, texts)
        display.refresh()

    def leave(self, row: TaskID, report: Report, texts: dict[str, str]) -> None:
        """Take a row away; the last one stays on the terminal as it is at the end."""
        with self._lock:
            display = self._display
            assert display is not None
            self._rows -= 1
            if self._rows:
                display.remove_task(row)
                display.refresh()
                return
            self._display = None
            try:
                _fill(display, row, report, texts)
            finally:
                display.stop()


_screen = _Screen()


def _new_display() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(table_column=Column(max_width=40, ratio=1)),
        TextColumn("{task.fields[texts]}"),
        console=Console(file=cast("IO[str]", _Tolerant(_unproxied(sys.stderr))), force_terminal=True),
        auto_refresh=False,  # that would be a thread
        # What the program prints goes above the bar, but only if it goes to a terminal at all.
        redirect_stdout=_is_terminal(sys.stdout),
    )


def _fill(display: Progress, row: TaskID, report: Report, texts: dict[str, str]) -> None:
    styled = (f"[{STYLES[name]}]{text}[/]" if name in STYLES else text for name, text in texts.items())
    display.update(row, completed=report.done + report.failed, total=report.total, texts="  ".join(styled))


def _can_show_bar() -> bool:
    return (
        _is_terminal(sys.stderr)
        and os.environ.get("TERM") not in ("dumb", "unknown")
        and importlib.util.find_spec("rich") is not None
        and not _screen.is_foreign()
    )


def _unproxied(stream: Any) -> Any:
    """The stream behind the proxy that a live display of rich puts in its place."""
    return getattr(stream, "rich_proxied_file", stream)


def _is_terminal(stream: IO[str] | None) -> bool:
    try:
        return stream is not None and bool(_unproxied(stream).isatty())  # older proxies always say no
    except (OSError, ValueError):  # closed
        return False


class Pace:
    """How many items end per second."""

    def __init__(self, report: Report, clock: Callable[[], float]) -> None:
        self._report = report
        self._clock = clock
        self._samples = deque([(clock(), _called(report))])

    def measure(self) -> float | None:
        """Items per second over the last `RATE_SECONDS` of measurements; None if they are too close together."""
        now = self._clock()
        self._samples.append((now, _called(self._report)))
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_SECONDS:
            self._samples.popleft()
        then, before = self._samples[0]
        return (self._samples[-1][1] - before) / (now - then) if now - then >= LEAST_SECONDS else None


def _called(report: Report) -> int:
    """Items that ended in this run: what comes from the journal says nothing about how long the rest will take."""
    return report.done + report.failed - report.resumed


def progress_texts(report: Report, rate: float | None) -> dict[str, str]:
    """What is shown of a run that is going on, by name, in order; `rate` in items per second."""
    texts = _counts(report)
    if rate is not None:
        texts["rate"] = _rate(rate)
    if (in_force := report.in_force) is not None:
        texts["limit"] = f"limit {in_force}"
    if rate and report.total is not None and (left := report.total - report.done - report.failed) > 0:
        texts["eta"] = f"ETA {span(left / rate)}"
    return texts


def final_texts(report: Report) -> dict[str, str]:
    """What is shown of a run that is over."""
    texts = _counts(report)
    if report.elapsed > 0:
        texts["rate"] = _rate(_called(report) / report.elapsed)
    texts["elapsed"] = f"in {span(report.elapsed)}"
    return texts


def _counts(report: Report) -> dict[str, str]:
    texts = {"done": f"{report.done} done" if report.total is None else f"{report.done}/{report.total} done"}
    for name in ("failed", "retried", "resumed"):
        if count := getattr(report, name):
            texts[name] = f"{count} {name}"
    return texts


def _rate(rate: float) -> str:
    return f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def span(seconds: float) -> str:
    """A length of time as people read it: `32 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    units = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
    size, name, smaller, smaller_name = next(unit for unit in units if whole >= unit[0])
    return f"{whole // size} {name} {whole % size // smaller} {smaller_name}"


def _empty(stream: IO[str]) -> None:
    """Let a stream that nobody reads write to nowhere: what it still holds would make the exit code 120 at the end."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


class _Tolerant:
    """A stream that is written to as long as that works, and may be None."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except BrokenPipeError:
                _empty(self._stream)
                self._stream = None
            except (OSError, ValueError):  # closed; has no letters for this text
                self._stream = None
        return len(text)

    def flush(self) -> None:
        """Each write flushes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
