"""`unwait fetch --requests`: a result line for each request, and never a finished request made twice."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import unwait
from unwait.cli.fetch_options import Job, allow_files, bad, check_files
from unwait.cli.fetch_output import Output
from unwait.cli.report import request_totals
from unwait.flow.faults import scrub
from unwait.flow.journal_reader import JournalReader
from unwait.web.bulk import Totals, send
from unwait.web.lines import read_lines
from unwait.web.request_lines import LONGEST_LINE
from unwait.web.text import printable

_COMPLAINTS = 20  # shown; the output has them all


def fetch_requests(job: Job, source: str, output: str | None) -> int:
    """Make the requests in `source` and write their results to `output`; the exit code."""
    file = None if output in (None, "-") else Path(output)
    journal = job.journal
    if journal is None and file is not None and (file.is_file() or not file.exists()):
        journal = file.with_name(f"{file.name}.journal")
    descriptor = _opened(source)
    for path, option in ((file, "--output"), (journal, "--journal")):
        if path is not None and path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
            raise bad("that is the file with the requests", option)
    check_files(journal, file, job.resume, "--output")
    written = Output(file, "--output")
    complaints = _Complaints()
    allow_files(job.tasks)
    started = time.perf_counter()
    try:
        totals = unwait.run(_send(job, descriptor, written, journal, complaints))
    except KeyboardInterrupt:
        hint = "; the same command with --resume does the rest" if journal is not None else ""
        print(f"unwait fetch: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:
        hint = f"; what is done is in {journal}: run again with --resume" if journal is not None else ""
        where = f" {error.filename}" if error.filename else ""
        print(f"unwait fetch: {error.strerror}{where}{hint}", file=sys.stderr)
        return 1
    finally:
        os.close(descriptor)
        written.close()
        complaints.end()
    print(request_totals(totals, job.policy.refused, time.perf_counter() - started), file=sys.stderr)
    if totals.unfinished and journal is not None:
        print(f"the same command with --resume makes {totals.unfinished} of them again", file=sys.stderr)
    if job.resume and journal is not None:
        _tell_left_out(journal, totals)
    return 1 if totals.report.failed or totals.malformed else 0


def _tell_left_out(journal: Path, totals: Totals) -> None:
    """The output has been written anew: what the journal has beyond it is told."""
    with JournalReader(journal) as reader:
        left_out = sum(reader.count()) - totals.report.done - totals.report.failed
    if left_out > 0:
        print(
            f"{left_out} results in {journal} belong to no line of these requests and are not in the output; "
            f"unwait journal export {journal} shows them",
            file=sys.stderr,
        )


def _opened(source: str) -> int:
    """A descriptor to read the requests from."""
    if source == "-" and sys.stdin is None:
        raise bad("stdin is closed", "--requests")
    try:
        if source == "-":
            return os.dup(sys.stdin.fileno())
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        os.read(descriptor, 0)  # refuses a directory
        return descriptor
    except OSError as error:
        raise bad(f"cannot read {source}: {error.strerror}", "--requests") from None


async def _send(
    job: Job, source: int, output: Output, journal: Path | None, complaints: _Complaints
) -> Totals:
    progress = job.progress
    if progress is None and output.path is None and sys.stdout is not None and sys.stdout.isatty():
        progress = False

    def started() -> None:
        output.open()
        output.begin()

    return await send(
        read_lines(source, LONGEST_LINE),
        output.write,
        limit=job.limit,
        journal=journal,
        started=started,
        complain=complaints,
        progress=progress,
        **job.options,
    )


class _Complaints:
    """Lines that are no requests, on stderr; of many, the first."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, number: int, problem: str) -> None:
        self._count += 1
        if self._count <= _COMPLAINTS:
            print(f"unwait fetch: line {number}: {printable(scrub(problem))}", file=sys.stderr)

    def end(self) -> None:
        """Tell how many were not shown."""
        if self._count > _COMPLAINTS:
            more = self._count - _COMPLAINTS
            print(f"unwait fetch: {more} more lines are no requests; the output names them", file=sys.stderr)
