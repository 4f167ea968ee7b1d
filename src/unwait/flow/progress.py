"""How far a run is, on stderr: bars on a terminal, otherwise a line every few seconds, or a callable's business."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from unwait.flow.pipeline_report import PipelineReport, StageReport

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from unwait.flow.stats import Report

PATIENCE = 1.0  # seconds that work lasts before a bar appears that nobody asked for
BAR_SECONDS = 0.2
CALL_SECONDS = 0.25
LINE_SECONDS = 5.0
RATE_SECONDS = 5.0  # the rate shown is that of the last so many seconds
LEAST_SECONDS = 0.1  # over less than that a rate says nothing
_NARROWEST_BAR = 4
STYLES = {"failed": "red", "retried": "yellow", "bottleneck": "bold"}


def write_line(line: str) -> None:
    """A line to stderr; lost if there is no stderr or nobody reads it."""
    _Tolerant(sys.stderr).write(line + "\n")


@contextmanager
def showing(progress: bool | Callable[[Report], None] | None, report: Report, label: str) -> Iterator[None]:
    """While inside, show how far the run of `report` is. Needs a running event loop.

    A run of a pipeline has a bar for each stage and one for the whole, which names the bottleneck so far.

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
            display = _Bars(_view(report, label, loop.time), asked_for=progress is True)
        elif progress:
            display = _Lines(_view(report, label, loop.time))
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

    def __init__(self, view: _View) -> None:
        self._view = view

    def tick(self) -> None:
        write_line(self._view.line())

    def end(self) -> None:
        write_line(self._view.line(over=True))


class _Bars:
    seconds = BAR_SECONDS

    def __init__(self, view: _View, *, asked_for: bool) -> None:
        self.first = 0.0 if asked_for else PATIENCE
        self._view = view
        self._asked_for = asked_for
        self._ids: Sequence[TaskID] | None = None

    def tick(self) -> None:
        rows = self._view.rows()
        self._join(rows)
        if self._ids is not None:
            try:
                _screen.update(self._ids, rows)
            except Exception:
                self.end()  # or stdout and stderr would stay redirected
                raise

    def end(self) -> None:
        rows = self._view.rows(over=True)
        if self._asked_for:
            self._join(rows)  # the run was over before the first tick
        if self._ids is not None:
            _screen.leave(self._ids, rows)

    def _join(self, rows: Sequence[_Row]) -> None:
        if self._ids is None:
            self._ids = _screen.join(rows, only_if_free=not self._asked_for)


@dataclass(frozen=True, slots=True)
class _Row:
    """A bar, and what stands beside it: texts with their styles, what matters most first."""

    label: tuple[str, str]
    done: int
    total: int | None
    texts: Sequence[tuple[str, str]]


class _View:
    """What is shown of a run."""

    def __init__(self, report: Report, label: str, clock: Callable[[], float]) -> None:
        self._report = report
        self._label = label
        self._pace = Pace(lambda: _called(report), clock)

    def line(self, over: bool = False) -> str:
        return f"{self._label}: {', '.join(self._texts(over).values())}"

    def rows(self, over: bool = False) -> list[_Row]:
        return [self._row(self._label, self._texts(over))]

    def _row(self, label: str, texts: dict[str, str]) -> _Row:
        report = self._report
        styled = [(text, STYLES.get(name, "")) for name, text in texts.items()]
        return _Row((label, ""), report.done + report.failed, report.total, styled)

    def _texts(self, over: bool) -> dict[str, str]:
        return final_texts(self._report) if over else progress_texts(self._report, self._pace.measure())


class _PipelineView(_View):
    """A row for each stage, and one for the whole, which names the bottleneck so far."""

    def __init__(self, report: PipelineReport, label: str, clock: Callable[[], float]) -> None:
        super().__init__(report, label, clock)
        self._pipeline = report
        self._paces = [Pace(partial(_left, stage), clock) for stage in report.stages]
        self._widths: Sequence[int] = ()

    def line(self, over: bool = False) -> str:
        report, texts = self._pipeline, self._texts(over)
        for stage in report.stages:
            if stage.name == report.bottleneck:
                queued = f", {stage.queued} queued" if stage.queued else ""
                texts["bottleneck"] = f"bottleneck {stage.name} ({100 * stage.busy:.0f} % busy{queued})"
        return f"{self._label}: {', '.join(texts.values())}"

    def rows(self, over: bool = False) -> list[_Row]:
        report = self._pipeline
        # What the journal has goes through no stage.
        expected = None if report.total is None else report.total - report.resumed
        found: list[tuple[StageReport, int | None, list[str]]] = []
        for number, (stage, pace) in enumerate(zip(report.stages, self._paces, strict=True)):
            rate = _left(stage) / report.elapsed if over and report.elapsed > 0 else pace.measure()
            cells = [
                f"{_left(stage)}" if over or expected is None else f"{_left(stage)}/{expected}",
                "" if rate is None else _rate(rate),
                f"{100 * stage.busy:.0f} % busy",
                f"queue {stage.queued}" if number else "",
            ]
            found.append((stage, expected, cells))
            if expected is not None:
                expected -= stage.failed  # which the stages behind it never see
        columns = zip(self._widths or (0,) * 4, *(map(len, cells) for _, _, cells in found), strict=True)
        # They only grow: what jumps to and fro cannot be read.
        self._widths = [max(column) for column in columns]
        rows = []
        for stage, total, cells in found:
            style = STYLES["bottleneck"] if stage.name == report.bottleneck else ""
            texts = [(cell.rjust(width), style) for cell, width in zip(cells, self._widths, strict=True)]
            rows.append(_Row((stage.name, style), _left(stage), total, texts))
        named = {} if report.bottleneck is None else {"bottleneck": f"bottleneck {report.bottleneck}"}
        return [*rows, self._row("all", {**named, **self._texts(over)})]


def _view(report: Report, label: str, clock: Callable[[], float]) -> _View:
    if isinstance(report, PipelineReport):
        return _PipelineView(report, label, clock)
    return _View(report, label, clock)


def _left(stage: StageReport) -> int:
    return stage.passed + stage.failed


class _Screen:
    """The one rich display of the process, with the rows of each run shown: two displays would overwrite each other."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # runs may be in several threads
        self._display: Progress | None = None
        self._runs = 0

    def is_foreign(self) -> bool:
        """Whether the program shows something live by itself, in whose way a bar would be."""
        with self._lock:
            return self._display is None and any(
                _unproxied(stream) is not stream for stream in (sys.stdout, sys.stderr)
            )

    def join(self, rows: Sequence[_Row], *, only_if_free: bool) -> Sequence[TaskID] | None:
        """New rows; None if they are wanted on an unused terminal only, and this one is in use."""
        with self._lock:
            if only_if_free and (self._display is not None or self.is_foreign()):
                return None
            display = self._display or _new_display()
            self._runs += 1
            ids = [display.add_task(**shown) for shown in _shown(display, rows)]
            if self._display is None:
                # With its rows: not one frame for each of them.
                display.start()
                self._display = display
            return ids

    def update(self, ids: Sequence[TaskID], rows: Sequence[_Row]) -> None:
        display = self._display
        assert display is not None
        _fill(display, ids, rows)
        display.refresh()

    def leave(self, ids: Sequence[TaskID], rows: Sequence[_Row]) -> None:
        """Take rows away; those of the last run stay on the terminal as they are at the end."""
        with self._lock:
            display = self._display
            assert display is not None
            self._runs -= 1
            if self._runs:
                for each in ids:
                    display.remove_task(each)
                display.refresh()
                return
            self._display = None
            try:
                _fill(display, ids, rows)
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


def _fill(display: Progress, ids: Sequence[TaskID], rows: Sequence[_Row]) -> None:
    for each, shown in zip(ids, _shown(display, rows), strict=True):
        display.update(each, **shown)


def _shown(display: Progress, rows: Sequence[_Row]) -> Iterator[dict[str, Any]]:
    """The rows as the display takes them, each on one line, however narrow the terminal is."""
    from rich.cells import cell_len

    room = display.console.width - max(cell_len(row.label[0]) for row in rows) - _NARROWEST_BAR - 2
    for row in rows:
        texts = list(row.texts)
        # Whole ones are left out: a bit of one says nothing.
        while len(texts) > 1 and sum(cell_len(text) + 2 for text, _ in texts) - 2 > room:
            texts.pop()
        yield {
            "description": _styled(*row.label),
            "completed": row.done,
            "total": row.total,
            "texts": "  ".join(_styled(*text) for text in texts),
        }


def _styled(text: str, style: str) -> str:
    from rich.markup import escape

    return f"[{style}]{escape(text)}[/]" if style else escape(text)


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
    """How many items end per second, of which `count` tells how many they are."""

    def __init__(self, count: Callable[[], int], clock: Callable[[], float]) -> None:
        self._count = count
        self._clock = clock
        self._samples = deque([(clock(), count())])

    def measure(self) -> float | None:
        """Items per second over the last `RATE_SECONDS` of measurements; None if they are too close together."""
        now = self._clock()
        self._samples.append((now, self._count()))
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
