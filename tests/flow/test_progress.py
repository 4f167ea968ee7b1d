"""What is shown of a run that goes on: a bar, lines, nothing, or what the program makes of it.

Terminals are real ones (pty), time is virtual.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import threading

import pytest
from rich.console import Console
from rich.live import Live

from unwait.flow import progress
from unwait.flow.pipeline import Pipeline, Stage
from unwait.flow.pipeline_report import PipelineReport, StageReport
from unwait.flow.progress import Pace, showing, span, write_line
from unwait.flow.stats import Report

from .virtual_clock import Stuck


def report_of(total=None, **counts):
    report = Report(asyncio.get_running_loop().time, total)
    for name, count in counts.items():
        setattr(report, name, count)
    return report


async def run(how, report, seconds, label="work", *, per_second=0):
    with showing(how, report, label):
        for _ in range(seconds):
            report.done += per_second
            await asyncio.sleep(1)
    report.end()


def until_stuck(loop, coroutine):
    """Run until nothing is left that the loop could wait for."""
    task = loop.create_task(coroutine)
    with pytest.raises(Stuck):
        loop.run_until_complete(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)


class Terminal:
    """A pseudo-terminal, which is stderr inside `with`; a thread reads what appears on it."""

    def __init__(self):
        self._master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w", buffering=1, errors="backslashreplace")
        self._seen = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        try:
            while data := os.read(self._master, 65536):
                self._seen += data
        except OSError:
            pass  # the other side is closed

    def __enter__(self):
        self._before, sys.stderr = sys.stderr, self.stream
        return self

    def __exit__(self, *_):
        assert sys.stderr is self.stream
        sys.stderr = self._before

    def raw(self):
        """What has appeared; nothing more can."""
        self.close()
        return self._seen.decode()

    def rows(self):
        """The same line by line, as they were written, without colours and cursor movements."""
        return [row for row in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw())) if row]

    def close(self):
        if not self.stream.closed:
            self.stream.close()
            self._reader.join()
            os.close(self._master)


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 100 columns."""
    made = Terminal()
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    yield made
    made.close()


# Lines


def test_a_line_comes_every_five_seconds_and_one_at_the_end(virtual, capsys):
    async def main():
        report = report_of(5000, failed=3, retried=41)
        report.watch(lambda: 64)
        await run(True, report, 12, "fetch", per_second=100)

    virtual(main())
    assert capsys.readouterr().err.splitlines() == [
        "fetch: 500/5000 done, 3 failed, 41 retried, 100/s, limit 64, ETA 45 s",
        "fetch: 1000/5000 done, 3 failed, 41 retried, 100/s, limit 64, ETA 40 s",
        "fetch: 1200/5000 done, 3 failed, 41 retried, 100/s, in 12 s",
    ]


def test_what_is_not_known_and_what_did_not_happen_is_left_out(virtual, capsys):
    async def main():
        await run(True, report_of(), 4, per_second=2)

    virtual(main())
    assert capsys.readouterr().err.splitlines() == ["work: 8 done, 2.0/s, in 4 s"]


def test_items_from_the_journal_are_shown_but_not_in_the_rate(virtual, capsys):
    async def main():
        await run(True, report_of(2000, done=1000, resumed=1000), 6, per_second=10)

    virtual(main())
    assert capsys.readouterr().err.splitlines() == [
        "work: 1050/2000 done, 1000 resumed, 10/s, ETA 1 min 35 s",
        "work: 1060/2000 done, 1000 resumed, 10/s, in 6 s",
    ]


def test_the_last_line_comes_also_after_an_error(virtual, capsys):
    async def main():
        with pytest.raises(LookupError), showing(True, report_of(2, failed=1), "work"):
            raise LookupError

    virtual(main())
    assert capsys.readouterr().err == "work: 0/2 done, 1 failed, in 0 s\n"


def test_lines_without_rich(virtual, terminal, monkeypatch):
    async def main():
        await run(True, report_of(), 1)

    monkeypatch.setitem(sys.modules, "rich", None)
    with terminal:
        virtual(main())
    assert terminal.rows() == ["work: 0 done, 0.0/s, in 1 s"]


@pytest.mark.parametrize("kind", ["dumb", "unknown"])
def test_lines_on_a_terminal_that_can_move_no_cursor(virtual, terminal, monkeypatch, kind):
    async def main():
        await run(None, report_of(), 2)
        await run(True, report_of(), 1)

    monkeypatch.setenv("TERM", kind)
    with terminal:
        virtual(main())
    assert terminal.raw() == "work: 0 done, 0.0/s, in 1 s\r\n"


@pytest.mark.parametrize("how", [None, False])
def test_nothing_is_shown_and_no_timer_set_unless_asked_for(virtual_loop, capsys, how):
    async def main():
        with showing(how, report_of(), "work"):
            await asyncio.get_running_loop().create_future()

    until_stuck(virtual_loop, main())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("how", [True, lambda report: None])
def test_no_timer_is_left_behind(virtual_loop, how):
    async def main():
        with showing(how, report_of(), "work"):
            await asyncio.sleep(1)
        await asyncio.get_running_loop().create_future()

    until_stuck(virtual_loop, main())


@contextlib.contextmanager
def broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", buffering=1)
    yield stream
    with contextlib.suppress(BrokenPipeError):
        stream.close()  # which tries once more


def closed():
    stream = io.StringIO()
    stream.close()
    return contextlib.nullcontext(stream)


@pytest.mark.parametrize(
    "make", [contextlib.nullcontext, closed, broken_pipe], ids=["none", "closed", "broken"]
)
def test_a_stderr_that_does_not_work_disturbs_nothing(virtual, monkeypatch, make):
    async def main():
        await run(True, report_of(), 6)
        write_line("a line")

    with make() as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        virtual(main())


def test_a_process_whose_stderr_breaks_ends_as_usual():
    code = """
import asyncio
from unwait.flow.progress import showing
from unwait.flow.stats import Report

async def main():
    with showing(True, Report(asyncio.get_running_loop().time), "work"):
        input()

asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stderr.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait() == 0


def test_importing_costs_no_rich():
    code = "import sys, unwait.flow.progress, unwait.flow.interrupt; sys.exit('rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Callables


def test_a_callable_gets_the_report_four_times_a_second_and_at_the_end(virtual):
    calls = []

    async def main():
        report = report_of()
        await run(calls.append, report, 2)
        return report

    report = virtual(main())
    assert 8 <= len(calls) <= 9
    assert set(calls) == {report}


def test_a_callable_is_called_once_for_a_run_that_is_over_at_once(virtual):
    calls = []

    async def main():
        await run(calls.append, report_of(), 0)

    virtual(main())
    assert len(calls) == 1


def test_a_callable_that_raises_is_reported_once_and_not_called_again(virtual, virtual_loop):
    calls, contexts = [], []

    def fail(report):
        calls.append(report)
        raise LookupError

    async def main():
        await run(fail, report_of(), 2)
        return "the run went on"

    virtual_loop.set_exception_handler(lambda _, context: contexts.append(context))
    assert virtual(main()) == "the run went on"
    assert len(calls) == 1
    assert [type(context["exception"]) for context in contexts] == [LookupError]


@pytest.mark.parametrize("how", ["yes", 1, 0, 0.5])
def test_anything_else_is_refused(virtual, how):
    async def main():
        with showing(how, report_of(), "work"):
            pass

    with pytest.raises(TypeError, match="progress must be True, False, None or a callable, not"):
        virtual(main())


# Bars


def test_a_bar_shows_the_counts_and_stays_as_it_was_at_the_end(virtual, terminal):
    async def main():
        report = report_of(400, failed=3, retried=41)
        report.watch(lambda: 64)
        await run(True, report, 3, "fetch [it]", per_second=100)

    with terminal:
        virtual(main())
    rows = terminal.rows()
    assert any(
        re.fullmatch(
            r"fetch \[it\] [━╸╺]+ 200/400 done  3 failed  41 retried  \d+/s  limit 64  ETA \d s *", row
        )
        for row in rows
    )
    assert re.fullmatch(r"fetch \[it\] [━╸╺]+ 300/400 done  3 failed  41 retried  101/s  in 3 s *", rows[-1])


def test_a_bar_for_an_unknown_number_of_items(virtual, terminal):
    async def main():
        await run(True, report_of(), 2, per_second=1000)

    with terminal:
        virtual(main())
    assert re.fullmatch(r"work ━+ 2000 done  1000/s  in 2 s *", terminal.rows()[-1])


def test_a_bar_asked_for_appears_also_if_the_run_is_over_at_once(virtual, terminal):
    async def main():
        await run(True, report_of(10, done=10, resumed=10), 0)

    with terminal:
        virtual(main())
    assert re.fullmatch(r"work ━+ 10/10 done  10 resumed  in 0 s *", terminal.rows()[-1])


def test_a_bar_nobody_asked_for_appears_after_a_second(virtual, terminal):
    async def main():
        report = report_of(10)
        with showing(None, report, "work"):
            await asyncio.sleep(0.9)
            assert progress._screen._display is None
            await asyncio.sleep(0.2)
            assert progress._screen._display is not None
        assert progress._screen._display is None

    with terminal:
        virtual(main())
    assert terminal.rows()


def test_short_work_shows_nothing_nobody_asked_for(virtual, terminal):
    async def main():
        with showing(None, report_of(), "work"):
            await asyncio.sleep(0.9)
        with showing(False, report_of(), "work"):
            await asyncio.sleep(9)

    with terminal:
        virtual(main())
    assert terminal.raw() == ""


def test_a_second_bar_joins_the_first_if_asked_for(virtual, terminal):
    async def main():
        await asyncio.gather(
            run(True, report_of(), 4, "first"),
            run(None, report_of(), 3, "silent"),
            run(True, report_of(), 2, "second"),
        )

    with terminal:
        virtual(main())
    rows = terminal.rows()
    assert any(row.startswith("second") for row in rows)
    assert not any(row.startswith("silent") for row in rows)
    assert rows[-1].startswith("first")


def test_runs_in_several_threads_share_the_display(terminal):
    both = threading.Barrier(2, timeout=30)

    async def main(name):
        with showing(True, report_of(), name):
            await asyncio.sleep(0.01)
            await asyncio.to_thread(both.wait)
            await asyncio.sleep(0.01)

    threads = [threading.Thread(target=lambda name=name: asyncio.run(main(name))) for name in ("one", "two")]
    with terminal:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert progress._screen._display is None
    assert {row.split()[0] for row in terminal.rows()} == {"one", "two"}


def test_lines_beside_a_display_of_the_program_itself(virtual, terminal):
    async def main():
        with Live("theirs", console=Console(file=terminal.stream, force_terminal=True), auto_refresh=False):
            await run(None, report_of(), 2, "unasked")
            await run(True, report_of(), 2, "asked")

    with terminal:
        virtual(main())
    rows = terminal.rows()
    assert "asked: 0 done, 0.0/s, in 2 s" in rows
    assert not any("unasked" in row for row in rows)


def test_a_bar_starts_no_thread(virtual, terminal):
    before = threading.active_count()

    async def main():
        with showing(True, report_of(), "work"):
            await asyncio.sleep(1)
            return threading.active_count()

    with terminal:
        assert virtual(main()) == before


def test_what_is_written_to_stderr_goes_above_the_bar(virtual, terminal):
    async def main():
        with showing(True, report_of(), "work"):
            await asyncio.sleep(1)
            write_line("interrupted")

    with terminal:
        virtual(main())
    rows = terminal.rows()
    at = rows.index("interrupted")
    assert all(row.startswith("work") for row in rows[:at] + rows[at + 1 :])
    assert rows[at + 1 :]


def test_stdout_is_left_alone_unless_it_is_a_terminal(virtual, terminal, monkeypatch, capsys):
    async def main():
        stdout = sys.stdout
        with showing(True, report_of(), "work"):
            await asyncio.sleep(1)
            print("a result")
            proxied = sys.stdout is not stdout
        assert sys.stdout is stdout
        return proxied

    with terminal:
        assert virtual(main()) is False
    assert capsys.readouterr().out == "a result\n"
    with terminal, contextlib.redirect_stdout(terminal.stream):
        assert virtual(main()) is True
    assert "a result" in terminal.rows()


@pytest.mark.parametrize("colours", [True, False])
def test_colours_can_be_switched_off(virtual, terminal, monkeypatch, colours):
    async def main():
        await run(True, report_of(10, failed=3), 1)

    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    with terminal:
        virtual(main())
    raw = terminal.raw()
    assert "3 failed" in raw
    assert ("\x1b[31m3 failed" in raw) is colours


def test_a_bar_that_fails_is_reported_and_gives_the_streams_back(
    virtual, virtual_loop, terminal, monkeypatch
):
    contexts = []

    def fail(*_):
        raise LookupError

    async def main():
        with showing(True, report_of(), "work"):
            await asyncio.sleep(1)
            assert sys.stderr is terminal.stream
        return "the run went on"

    virtual_loop.set_exception_handler(lambda _, context: contexts.append(context))
    monkeypatch.setattr(progress._screen, "update", fail)
    with terminal:
        assert virtual(main()) == "the run went on"
    assert [type(context["exception"]) for context in contexts] == [LookupError]


def test_a_terminal_that_is_closed_disturbs_nothing(virtual, terminal, monkeypatch):
    async def main():
        with showing(True, report_of(), "work"):
            await asyncio.sleep(1)
            os.close(master)
            await asyncio.sleep(1)
            write_line("interrupted")
        assert sys.stderr is stream

    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w", buffering=1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        virtual(main())
    with contextlib.suppress(OSError):
        stream.close()  # which tries once more


# Pipelines


def pipeline_of(total, *names):
    clock = asyncio.get_running_loop().time
    report = PipelineReport(clock, total)
    report.stages += [StageReport(name, 2, 2, Report(clock)) for name in names]
    return report


async def flow(how, report, seconds, *, per_second, busy, queued=0, failing=0):
    """Each stage lets `per_second` of its own pass; `busy` are the calls at the same time."""
    with showing(how, report, " → ".join(stage.name for stage in report.stages)):
        for _ in range(seconds):
            for stage, passed, calls in zip(report.stages, per_second, busy, strict=True):
                stage.passed += passed
                stage.calls.calling += calls
            report.stages[0].failed += failing
            report.failed += failing
            report.stages[-1].queued = queued
            report.done += per_second[-1]
            await asyncio.sleep(1)
        report.end()


def test_a_line_of_a_pipeline_names_the_bottleneck_and_its_queue(virtual, capsys):
    async def main():
        report = pipeline_of(1000, "fetch", "store")
        await flow(True, report, 6, per_second=(50, 20), busy=(0.5, 1.8), queued=30)

    virtual(main())
    assert capsys.readouterr().err.splitlines() == [
        "fetch → store: 100/1000 done, 20/s, ETA 45 s, bottleneck store (90 % busy, 30 queued)",
        "fetch → store: 120/1000 done, 20/s, in 6 s, bottleneck store (90 % busy, 30 queued)",
    ]


def test_a_pipeline_has_a_bar_for_each_stage_and_one_for_the_whole(virtual, terminal):
    async def main():
        report = pipeline_of(400, "fetch [it]", "store")
        await flow(True, report, 3, per_second=(49, 20), busy=(0.5, 1.8), queued=30, failing=1)

    with terminal:
        virtual(main())
    rows = [" ".join(re.sub("[━╸╺]+", "=", row).split()) for row in terminal.rows()]
    # What a stage fails with, the next one never sees.
    for expected in (
        r"fetch \[it\] = 100/400 50/s \d+ % busy",
        r"store = 40/398 20/s \d+ % busy queue 30",
        r"all = bottleneck store 40/400 done 2 failed \d+/s ETA \d+ s",
    ):
        assert any(re.fullmatch(expected, row) for row in rows), expected
    assert rows[-3:] == [
        "fetch [it] = 150 50/s 25 % busy",
        "store = 60 20/s 90 % busy queue 30",
        "all = bottleneck store 60/400 done 3 failed 21/s in 3 s",
    ]


def test_without_a_total_the_stages_are_counted(virtual, terminal):
    async def main():
        report = pipeline_of(None, "fetch", "store")
        await flow(True, report, 1, per_second=(50, 20), busy=(0, 0))

    with terminal:
        virtual(main())
    rows = terminal.rows()
    assert not any("/5" in row or "None" in row or "bottleneck" in row for row in rows)
    assert re.fullmatch(r"fetch ━+ 50 +50/s  0 % busy *", rows[-3])
    assert re.fullmatch(r"all   ━+ 20 done  20/s  in 1 s *", rows[-1])


@pytest.mark.parametrize("columns", [24, 30, 40, 60])
def test_on_a_narrow_terminal_a_row_is_a_line_of_whole_texts(virtual, terminal, monkeypatch, columns):
    async def main():
        await flow(
            True, pipeline_of(4000, "fetch", "store"), 2, per_second=(490, 200), busy=(0.5, 1.8), queued=30
        )

    monkeypatch.setenv("COLUMNS", str(columns))
    with terminal:
        virtual(main())
    rows = terminal.rows()
    assert all(len(row) <= columns and "…" not in row for row in rows)
    assert {row.split()[0] for row in rows} == {"fetch", "store", "all"}
    assert "980" in rows[-3]
    assert "bottleneck store" in rows[-1]


def test_the_rows_of_a_pipeline_appear_and_leave_together(virtual, terminal):
    async def main():
        await asyncio.gather(
            run(True, report_of(), 4, "longer"),
            flow(True, pipeline_of(10, "fetch", "store"), 2, per_second=(1, 1), busy=(1, 1)),
        )

    with terminal:
        virtual(main())
    frames = re.split(r"(?=longer )", "\n".join(terminal.rows()))
    names = [tuple(row.split()[0] for row in frame.splitlines()) for frame in frames if frame]
    assert {"longer", "fetch", "store", "all"} == {name for frame in names for name in frame}
    assert names[-1] == ("longer",)
    assert ("longer", "fetch", "store", "all") in names


def test_no_frame_has_some_of_the_rows_of_a_pipeline(virtual, terminal):
    async def main():
        await flow(True, pipeline_of(10, "fetch", "store"), 2, per_second=(1, 1), busy=(1, 1))

    with terminal:
        virtual(main())
    names = [row.split()[0] for row in terminal.rows()]
    assert names == ["fetch", "store", "all"] * (len(names) // 3)


def test_a_running_pipeline_shows_its_queues_and_its_total_once_that_is_known(virtual):
    shown = []

    async def numbers():
        for number in range(30):
            yield number

    async def fetch(number):
        return number

    async def store(number):
        await asyncio.sleep(1)

    def look(report):
        shown.append((report.total, report.stages[1].queued, report.bottleneck))

    async def main():
        stages = [Stage(fetch, limit=5), Stage(store, limit=1, queue=8)]
        await Pipeline(stages).run(numbers(), progress=look)

    virtual(main())
    assert (None, 8, "store") in shown
    assert (30, 3, "store") in shown
    assert shown[-1] == (30, 0, "store")


# Numbers


def test_the_rate_is_that_of_the_last_seconds(virtual):
    async def main():
        report = report_of()
        pace = Pace(lambda: report.done + report.failed, asyncio.get_running_loop().time)
        assert pace.measure() is None
        for _ in range(10):
            report.done += 100
            await asyncio.sleep(1)
            assert pace.measure() == pytest.approx(100)
        for _ in range(5):
            report.done += 4
            report.failed += 6
            await asyncio.sleep(1)
            rate = pace.measure()
        assert rate == pytest.approx(10)
        await asyncio.sleep(5)
        assert pace.measure() == 0

    virtual(main())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (7530, "2 h 5 min"),
        (86400 * 4 + 3600 * 3, "4 d 3 h"),
    ],
)
def test_lengths_of_time_as_people_read_them(seconds, text):
    assert span(seconds) == text
