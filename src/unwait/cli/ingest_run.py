"""One run of `unwait ingest`: the rows as they come, what is shown at the end, the exit code."""

from __future__ import annotations

import json
import os
import shlex
import stat
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import unwait
from unwait.cli.fetch_options import bad
from unwait.cli.stdio import on_one_line, safe, tolerate_characters
from unwait.cli.store_option import problems_told
from unwait.flow.faults import scrub

if TYPE_CHECKING:
    from unwait.documents.report import IngestReport, Row

_EXAMPLES = 10  # failures shown
_CAUSES = 100  # of which examples are kept
_LONGEST = 300  # characters of an error


def run_ingest(
    sources: Sequence[str],
    options: Mapping[str, Any],
    database: str,
    rows: Rows,
    as_json: bool,
) -> int:
    """Call `unwait.ingest` and show what it came to; the exit code."""
    tolerate_characters()
    with problems_told("ingest"):
        try:
            report = unwait.run(unwait.ingest(sources, store=database, on_row=rows.add, **options))
        except KeyboardInterrupt:
            told = f"interrupted; {rows.counts()}; the same command does the rest"
            print(f"unwait ingest: {told}", file=sys.stderr)
            return 130
        except Exception:
            if rows.counted:
                told = f"not finished: {rows.counts()}; the same command does the rest"
                print(f"unwait ingest: {told}", file=sys.stderr)
            raise
        rows.end()
        if as_json:
            print(json.dumps(report.to_json()))
        else:
            print(safe(str(report)))
            _show_failures(report, rows, database)
    if rows.fault is not None:
        print(f"unwait ingest: {rows.fault}", file=sys.stderr)
    return 1 if report.failed or rows.fault else 0


def _show_failures(report: IngestReport, rows: Rows, database: str) -> None:
    if not report.failed:
        return
    # How many of each cause there are, the report has told.
    each = max(1, _EXAMPLES // len(report.causes))
    examples = [
        example
        for kind, _ in report.causes.most_common()
        for example in list(rows.examples.get(kind, {}).values())[:each]
    ][:_EXAMPLES]
    whole = sum(example.times for example in examples) == report.failed
    print("\nfailed" if whole else "\nfailed, for example")
    for row, times in examples:
        facts = (row.kind or "error", scrub(row.uri), scrub(row.error or "")[:_LONGEST])
        more = f" (the same for {times - 1:,} more)" if times > 1 else ""
        print(f"  {': '.join(map(on_one_line, facts))}{more}")
    name = shlex.quote(safe(scrub(database)))
    print(f"all of them: unwait documents failed --db {name}")
    print(f"once more:   unwait ingest --retry-failed --db {name}")


class Example(NamedTuple):
    """The first row with its error, and how many there were."""

    row: Row
    times: int


class Rows:
    """Takes the rows: writes each to the file of `--report`, counts them, and keeps some failures to show."""

    def __init__(self, path: Path | None, database: str) -> None:
        if path is not None and os.path.realpath(path) == os.path.realpath(database):
            raise bad("that is the store itself", "--report")
        self._path = path
        self._descriptor = -1
        self._begun = False
        self._outcomes: Counter[str] = Counter()
        self.examples: dict[str, dict[str, Example]] = {}
        self.fault: str | None = None

    def __enter__(self) -> Self:
        if self._path is not None:
            try:
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise bad(f"cannot write {self._path}: {error.strerror}", "--report") from None
            # A pipe would make the loop wait for whoever reads it.
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                os.close(self._descriptor)
                raise bad(f"{self._path} is not a file", "--report")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def add(self, row: Row) -> None:
        """Take a row."""
        self._outcomes[row.outcome] += 1
        if row.outcome == "failed":
            kind = row.kind or "error"
            error = row.error or ""
            if kind in self.examples or len(self.examples) < _CAUSES:
                kept = self.examples.setdefault(kind, {})
                if (seen := kept.get(error)) is not None:
                    kept[error] = Example(seen.row, seen.times + 1)
                elif len(kept) < _EXAMPLES:
                    kept[error] = Example(row, 1)
        self._write(json.dumps(row.to_json()).encode() + b"\n")

    def end(self) -> None:
        """All rows are there: also where there were none, what an earlier run wrote goes."""
        self._write(b"")

    @property
    def counted(self) -> bool:
        """Whether there was a row."""
        return bool(self._outcomes)

    def counts(self) -> str:
        """How many there were of each outcome, for people."""
        return (
            ", ".join(f"{count:,} {name}" for name, count in self._outcomes.items()) or "nothing was stored"
        )

    def _write(self, line: bytes) -> None:
        if self._descriptor < 0 or self.fault is not None:
            return
        try:
            if not self._begun:
                # Not before the run has turned out to be one.
                self._begun = True
                os.ftruncate(self._descriptor, 0)
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError as error:
            # The documents matter more: the run goes on.
            self.fault = f"cannot write {self._path}: {error.strerror}; it is not complete"
