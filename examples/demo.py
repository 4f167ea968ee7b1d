"""`make demo`: what waiting costs, in three parts; `make demo ARGS=pages`, `calls` or `documents` shows one of them.

Pages: the documentation of Python's standard library, fetched one by one and then concurrently, with the real
`unwait fetch`. Calls: the same 500 calls to an API that limits and fails, one by one, with asyncio.gather and with
`unwait.map`. Documents: the pages again, into a database that can be searched, with the real `unwait ingest` one at
a time and then concurrently, and three questions for it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill, indent
from typing import Any
from urllib.request import urlopen

import aiohttp

import unwait

HERE = Path(__file__).parent

WIDTH = 100  # of the text, in columns

CALLS = 500
SAMPLE = 20  # calls made one by one; they stand for all
# The API's limits: so many seconds, and in any window of that length so many requests and so many tokens.
WINDOW, REQUESTS, TOKENS = 5, 300, 24_000
FAULTS = "--seed 5 --latency 0.25 --errors 0.06 --drops 0.01 --resets 0.01 --closes 0.02 --gzip 0.5"

QUESTIONS = (
    "how do I read a file line by line in reverse",
    "wait for several coroutines to finish",
    "parse command line arguments",
)

Job = dict[str, Any]
Call = Callable[[Job], Awaitable[Any]]


@contextmanager
def server(name: str, *options: str) -> Iterator[str]:
    """One of the example servers in a process of its own; gives its address."""
    line = [sys.executable, str(HERE / name), "--port", "0", *options]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                sys.exit(f"{name} did not start")
            yield address
        finally:
            process.terminate()


# Pages.


def fetch(source: Path, directory: Path, limit: int) -> float:
    """Run the command, show the ends of its output, return the seconds from start to end of the process."""
    command = ["unwait", "fetch", "--from", str(source), "-o", str(directory), "--limit", str(limit)]
    print(f"\n$ {' '.join(command)}", flush=True)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
    took = time.perf_counter() - started
    rows = [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
    print("\n".join([*rows[:7], f"  … {len(rows) - 9} more rows …", *rows[-2:]]))
    if done.returncode:
        sys.exit(f"unwait fetch ended with exit code {done.returncode}")
    return took


def show_pages() -> None:
    print("Rendering the documentation of the standard library …", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="unwait-demo-") as name,
        server("docs_server.py") as address,
    ):
        scratch = Path(name)
        source = scratch / "urls.txt"
        source.write_bytes(urlopen(f"{address}urls.txt").read())
        pages = len(source.read_text().splitlines())
        print(f"{pages} pages at {address}, each sent after about 80 ms.")
        one_by_one = fetch(source, scratch / "one-by-one", 1)
        concurrent = fetch(source, scratch / "concurrent", 100)
        saved = [
            {file.name: file.read_bytes() for file in (scratch / directory).iterdir()}
            for directory in ("one-by-one", "concurrent")
        ]
    if saved[0] != saved[1] or len(saved[0]) != pages:
        sys.exit("the two runs did not save the same pages")
    print(f"\n{pages} pages, {sum(map(len, saved[0].values())) / 2**20:.1f} MiB, the same files both times:")
    print(f"  one by one    {one_by_one:6.2f} s")
    print(f"  concurrently  {concurrent:6.2f} s   {one_by_one / concurrent:.1f} times as fast")


# Calls.


def make_jobs() -> list[Job]:
    """Requests of mixed sizes, the same in every run."""
    chance = random.Random(7)
    return [
        {
            "id": f"job-{number}",
            "prompt": "why wait " * chance.randint(1, 40),
            "max_tokens": chance.randint(8, 64),
        }
        for number in range(CALLS)
    ]


def tokens(job: Job) -> int:
    """What a call costs by the API's count."""
    return len(job["prompt"].split()) + int(job["max_tokens"])


@dataclass
class Row:
    """What one way of calling came to; `share` of the calls were made, the rest is extrapolated."""

    name: str
    seconds: float
    results: list[Any]
    seen: dict[str, Any]  # the server's own count
    share: float = 1.0

    @property
    def answers(self) -> list[Any]:
        return [result for result in self.results if not isinstance(result, BaseException)]

    def __str__(self) -> str:
        answered = len(self.answers)
        counts = (answered, len(self.results) - answered, self.seen["refused"])
        scaled = " ".join(f"{round(count / self.share):9,}" for count in counts)
        mark = "≈" if self.share < 1 else " "
        return f"  {self.name:<16}{mark}{self.seconds / self.share:8.1f} s {scaled}"


async def one_by_one(call: Call, jobs: list[Job]) -> list[Any]:
    results: list[Any] = []
    for job in jobs:
        try:
            results.append(await call(job))
        except (aiohttp.ClientError, OSError) as error:
            results.append(error)
    return results


async def gathered(call: Call, jobs: list[Job]) -> list[Any]:
    return await asyncio.gather(*map(call, jobs), return_exceptions=True)


async def map_calls(call: Call, jobs: list[Job]) -> list[Any]:
    return await unwait.map(
        call,
        jobs,
        rate=f"{REQUESTS}/{WINDOW}s",
        tokens=f"{TOKENS}/{WINDOW}s",
        cost=tokens,
        retry=5,
        errors="return",
    )


async def measure(
    url: str, name: str, way: Callable[[Call, list[Job]], Awaitable[list[Any]]], jobs: list[Job]
) -> Row:
    """Make the calls that way, on connections and limits that nothing has used before."""
    async with aiohttp.ClientSession() as session:

        async def call(job: Job) -> Any:
            async with session.post(f"{url}/v1/complete", json=job) as response:
                response.raise_for_status()
                return await response.json()

        async with session.post(f"{url}/reset"):
            pass
        started = time.perf_counter()
        results = await way(call, jobs)
        seconds = time.perf_counter() - started
        async with session.get(f"{url}/stats") as response:
            return Row(name, seconds, results, await response.json(), len(jobs) / CALLS)


def shortest(jobs: list[Job]) -> int:
    """Seconds that the limits alone cost: all but the last window's worth must wait for the next window."""
    windows = max(-(-len(jobs) // REQUESTS), -(-sum(map(tokens, jobs)) // TOKENS))
    return (windows - 1) * WINDOW


def describe(url: str, jobs: list[Job]) -> str:
    text = (
        f"{len(jobs)} calls of {sum(map(tokens, jobs)):,} tokens in all to {url}/v1/complete. This API admits "
        f"{REQUESTS} requests and {TOKENS:,} tokens in any {WINDOW} s, answers after about 250 ms, and lets about "
        "every tenth call fail: statuses 500 to 504 in bursts, connections reset before or within the answer."
    )
    return f"""\
{fill(text, WIDTH)}

  1  for job in jobs: await call(job)
  2  await asyncio.gather(*map(call, jobs), return_exceptions=True)
  3  await unwait.map(call, jobs, rate="{REQUESTS}/{WINDOW}s", tokens="{TOKENS}/{WINDOW}s", cost=tokens,
                      retry=5, errors="return")
"""


def explain(sampled: Row, mapped: Row, jobs: list[Job]) -> str:
    window = mapped.seen["window"]
    text = (
        f"≈ is extrapolated: every {CALLS // SAMPLE}th call was made, {len(sampled.results)} calls in "
        f"{sampled.seconds:.1f} s. The 429s are the API's own count. At its limits the calls need more than "
        f"{shortest(jobs)} s, whatever makes them. Of unwait.map it saw at most {window['requests_arrived']} requests "
        f"and {window['tokens_arrived']:,} tokens in any {WINDOW} s. The report that came with the results:"
    )
    return f"\n{fill(text, WIDTH)}\n"


async def compare(url: str) -> None:
    jobs = make_jobs()
    print(describe(url, jobs))
    # Errors hit neighbours together: a sample spread over all jobs is hit as often as they are.
    sample = jobs[:: CALLS // SAMPLE]
    rows = []
    for name, way, chosen in (
        ("1 one by one", one_by_one, sample),
        ("2 asyncio.gather", gathered, jobs),
        ("3 unwait.map", map_calls, jobs),
    ):
        print(f"{name}, {len(chosen)} calls …", flush=True)
        rows.append(await measure(url, name, way, chosen))
    print(f"\n  {'':<17}{'time':>10} {'answered':>9} {'failed':>9} {'429s':>9}")
    print(*rows, sep="\n")
    sampled, _, mapped = rows
    print(explain(sampled, mapped, jobs))
    assert isinstance(mapped.results, unwait.Results)
    print(indent(str(mapped.results.report), "  "))
    if [result["id"] for result in mapped.answers] != [job["id"] for job in jobs]:
        sys.exit("unwait.map did not answer every call in order")


def show_calls() -> None:
    options = f"--rpm {REQUESTS} --tpm {TOKENS} --window {WINDOW} {FAULTS}".split()
    with server("flaky_api.py", *options) as url:
        unwait.run(compare(url))


# Documents.


def ingest(sitemap: str, store: Path, limit: int) -> tuple[float, dict[str, Any]]:
    """Run the command; the seconds from start to end of the process, and its report."""
    command = ["unwait", "ingest", sitemap, "--db", str(store), "--limit", str(limit)]
    print(f"\n$ {' '.join(command)}", flush=True)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command, "--json"], stdout=subprocess.PIPE, text=True)
    took = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"unwait ingest ended with exit code {done.returncode}")
    report = json.loads(done.stdout)
    counts = ", ".join(f"{count} {name}" for name, count in report["outcomes"].items() if count)
    print(
        f"  {took:.1f} s: {counts}; {report['chunks']:,} chunks, {report['embedded']:,} embedded; bottleneck "
        f"{report['bottleneck']}; loop lag p99 {1000 * report['lag_p99']:.1f} ms"
    )
    return took, report


def show_documents() -> None:
    print("Rendering the documentation of the standard library …", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="unwait-demo-") as name,
        server("docs_server.py") as address,
    ):
        store = Path(name) / "kb.db"
        sitemap = f"{address}sitemap.xml"
        print(
            "Each page is downloaded, cut into chunks, embedded, summarised and saved: no server, no key.\n"
            "One at a time, then concurrently, then again with nothing changed:"
        )
        one_by_one, report = ingest(sitemap, Path(name) / "one-by-one.db", 1)
        concurrent, same = ingest(sitemap, store, 64)
        again, nothing = ingest(sitemap, store, 64)
        if report["chunks"] != same["chunks"] or nothing["embedded"]:
            sys.exit("the runs did not come to the same")
        for question in QUESTIONS:
            command = ["unwait", "search", question, "--db", str(store), "-k", "2"]
            print(f'\n$ unwait search "{question}" --db {store} -k 2', flush=True)
            subprocess.run([sys.executable, "-m", *command], check=True)
    print(f"\n{same['outcomes']['added']} pages, {same['chunks']:,} chunks, the same both times:")
    print(f"  one at a time   {one_by_one:6.2f} s")
    print(f"  concurrently    {concurrent:6.2f} s   {one_by_one / concurrent:.1f} times as fast")
    print(f"  nothing changed {again:6.2f} s")


PARTS = {"pages": show_pages, "calls": show_calls, "documents": show_documents}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=list(PARTS), help="only this one")
    chosen = parser.parse_args().part
    for number, name in enumerate([chosen] if chosen else PARTS):
        if number:
            print(f"\n{'─' * WIDTH}\n")
        PARTS[name]()


if __name__ == "__main__":
    main()
