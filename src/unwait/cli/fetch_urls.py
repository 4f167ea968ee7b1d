"""`unwait fetch URL…`: a row for each, totals, and the bodies as files."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path

import unwait
from unwait.cli.fetch_options import Job, allow_files, bad, check_files
from unwait.cli.fetch_output import Output
from unwait.cli.report import print_table, totals
from unwait.cli.stdio import tolerate_characters
from unwait.web.fetch import Fetched, fetch_as_completed


def fetch_urls(
    job: Job, urls: Sequence[str], source: str | None, output: str | None, as_json: bool, jsonl: str | None
) -> int:
    """Fetch them and show what became of each; the exit code."""
    wanted = list(dict.fromkeys([*urls, *(_read_urls(source) if source else [])]))
    if not wanted:
        raise bad("no URLs given", "URL")
    as_json = as_json or jsonl == "-"
    file = None if jsonl in (None, "-") else Path(jsonl)
    check_files(job.journal, file, job.resume, "--jsonl")
    directory = None if output is None else Path(output)
    if directory is not None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise bad(f"cannot make {directory}: {error.strerror}", "--output") from None
    allow_files(min(job.tasks, len(wanted)))
    tolerate_characters()

    results: list[Fetched] = []
    outputs = [Output(None, "--json")] if as_json else []
    outputs += [Output(file, "--jsonl")] if file is not None else []
    started = time.perf_counter()
    interrupted = False
    with ExitStack() as closed:
        for each in outputs:
            each.open()
            closed.callback(each.close)
        try:
            unwait.run(_collect(job, wanted, directory, results, outputs, as_json))
        except KeyboardInterrupt:
            interrupted = True
    took = time.perf_counter() - started

    if not as_json:
        print_table(sorted(results, key=lambda result: result.index))
    line = totals(results, took, job.policy.refused)
    if interrupted:
        line = f"interrupted, {len(wanted) - len(results)} of {len(wanted)} not done; {line}"
    print(line, file=sys.stderr if as_json else sys.stdout)
    if interrupted:
        if job.journal is not None:
            print("the same command with --resume fetches what is missing", file=sys.stderr)
        return 130
    return 1 if any(result.error for result in results) else 0


async def _collect(
    job: Job,
    urls: Sequence[str],
    directory: Path | None,
    results: list[Fetched],
    outputs: Sequence[Output],
    as_json: bool,
) -> None:
    progress = job.progress
    if progress is None and as_json and sys.stdout is not None and sys.stdout.isatty():
        progress = False
    fetching = fetch_as_completed(
        urls,
        limit=job.limit,
        directory=directory,
        journal=job.journal,
        progress=progress,
        **job.options,
    )
    async with aclosing(fetching):
        async for result in fetching:
            if not results:
                # Not before the journal has turned out to be the right one.
                for output in outputs:
                    output.begin()
            results.append(result)
            for output in outputs:
                await output.write(_json_line(result))


def _json_line(result: Fetched) -> bytes:
    facts = {
        "url": result.url,
        "ok": result.error is None,
        "status": result.status,
        "error": result.error,
        "size": result.size,
        "elapsed": round(result.elapsed, 6),
        "waited": round(result.waited, 6),
        "attempts": result.attempts,
        "path": None if result.path is None else str(result.path),
        "begins": result.begins,
    }
    return json.dumps(facts).encode() + b"\n"


def _read_urls(source: str) -> Iterable[str]:
    if source == "-" and sys.stdin is None:
        raise bad("stdin is closed", "--from")
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise bad(f"cannot read {source}: {error.strerror}", "--from") from None
    lines = (line.strip() for line in content.decode("utf-8-sig", "replace").splitlines())
    return (line for line in lines if line and not line.startswith("#"))
