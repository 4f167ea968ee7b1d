"""What `unwait ingest` and `unwait search` cost, beside a script and two frameworks: one cell, its contenders in turn.

    python documents.py CELL CONTENDER… [--port N] [--short]

prints one line of JSON: contender → metrics, or {"unsupported": why}, or {"failed": why}. Each contender works in a
fresh process (`documents.py work …`), on both cores. Its clock starts when its libraries are imported and stops when
all it makes is stored; what loads a model does so within that time. CPU is user and system time of all its threads and
processes.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from documents_cells import (
    ALONE,
    BETTER,
    CELLS,
    FULL_TEXT,
    FUSION,
    IN_MEMORY,
    NO_SUMMARIES,
    ONE,
    SLOWEST,
    VECTORS,
)
from documents_corpus import POSTGRESQL, PYTHON, copies
from documents_peers import LIMIT, PEERS, Work, first
from flow_cells import OURS
from loops import Unsupported, new_loop

ONE_AT_A_TIME = 40  # pages; the rate is taken for that of all
SHORT = 150
COPIES = 10
WARM = 20
TIMED = 300
HITS = 10
CHILD_TIMEOUT = 280
# What an ingestion imports when it comes to it.
IMPORTED = (
    "extract",
    "html",
    "chunk",
    "extractive",
    "static_vectors",
    "openai",
    "sqlite_store",
    "ingest",
    "search",
)


class Peak:
    """The most memory of this process and of those that it starts, as they were last looked at, together."""

    def __init__(self) -> None:
        self._mib: dict[str, float] = {}

    def look(self) -> None:
        own = str(os.getpid())
        begun = Path(f"/proc/self/task/{own}/children").read_text().split()
        for process in (own, *begun):
            with suppress(OSError, StopIteration):  # it has just ended
                lines = Path(f"/proc/{process}/status").read_text().splitlines()
                found = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
                self._mib[process] = found / 1024

    def mib(self) -> float:
        self.look()
        return sum(self._mib.values())


def cpu_seconds() -> float:
    """Of this process and of its own that have ended."""
    return sum(os.times()[:4])


async def timed(work: Awaitable[dict[str, float]], peak: Peak | None = None) -> dict[str, float]:
    """What the work says, with its times; `pages` becomes a rate."""
    began, before = time.perf_counter(), cpu_seconds()
    said = await work
    took, spent = time.perf_counter() - began, cpu_seconds() - before
    pages, mib = said.pop("pages"), (peak or Peak()).mib()
    return {"pages_per_second": pages / took, "wall_s": took, "cpu_s": spent, "peak_mib": mib, **said}


# In a process of its own: one contender.


async def by_unwait(todo: Work, **options: Any) -> dict[str, float]:
    """An ingestion, of the pages as files or from the site."""
    import unwait

    for name in IMPORTED:
        importlib.import_module(f"unwait.documents.{name}")
    if todo.site:
        sources: list[Any] = todo.urls
        options |= {"embed": "openai:bench", "base_url": todo.api, "limit": LIMIT, "per_host": LIMIT}
    else:
        sources = list(todo.pages)

    peak, rows = Peak(), itertools.count(1)

    async def work() -> dict[str, float]:
        report = await unwait.ingest(
            sources,
            store=todo.database,
            progress=False,
            on_row=lambda _: next(rows) % 64 or peak.look(),
            **options,
        )
        assert report.failed == 0, report.causes
        return {
            "pages": report.sources,
            "chunks": report.chunks,
            "model_calls": report.model_calls,
            "lag_p99_ms": report.lag_p99 * 1000,
        }

    return await timed(work(), peak)


async def stage_alone(todo: Work, name: str) -> dict[str, float]:
    import documents_stages

    async with AsyncExitStack() as stack:
        stage = await documents_stages.STAGES[name](todo, stack)

        async def work() -> dict[str, float]:
            await stage()
            return {"pages": len(todo.pages)}

        return await timed(work())


async def contend(contender: str, todo: Work) -> dict[str, float]:
    if contender == OURS:
        return await by_unwait(todo)
    if contender == NO_SUMMARIES:
        return await by_unwait(todo, summarise="none")
    if contender in ALONE:
        return await stage_alone(todo, contender.removesuffix(" alone"))
    way = PEERS[contender.removesuffix(IN_MEMORY)]()
    return await timed(way(todo))


def work_here(options: argparse.Namespace) -> dict[str, float]:
    """The child's part."""
    pages = sorted(Path(options.directory).glob("*.html")) if options.directory else POSTGRESQL.pages()
    if options.count:
        pages = first(pages, options.count)
    site = f"http://127.0.0.1:{options.port}" if options.port else ""
    todo = Work(pages, Path(options.database), site, kept=not options.contender.endswith(IN_MEMORY))
    with asyncio.Runner(loop_factory=lambda: new_loop("unwait")) as runner:
        return runner.run(contend(options.contender, todo))


# Here: the contenders of a cell.


class Children:
    """Starts the processes in which contenders work."""

    def __init__(self, scratch: Path, port: int | None, short: bool) -> None:
        self.scratch, self.port, self.short = scratch, port, short

    def work(
        self, contender: str, database: Path, *, directory: Path | None = None, count: int | None = None
    ) -> dict[str, float]:
        arguments = [sys.executable, __file__, "work", contender, "--database", str(database)]
        if self.port:
            arguments += ["--port", str(self.port)]
        if directory:
            arguments += ["--directory", str(directory)]
        if count or self.short:
            arguments += ["--count", str(min(count or SHORT, SHORT if self.short else 1 << 30))]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=CHILD_TIMEOUT)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no reason given"])[-1])
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if "unsupported" in said:
            raise Unsupported(said["unsupported"])
        return said

    def calls(self) -> dict[str, int]:
        """How many requests the server had since it was last asked."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/calls") as answer:
            said: dict[str, int] = json.load(answer)
            return said


def measure_run(children: Children, contender: str) -> dict[str, float]:
    """An ingestion; of unwait a second one into the same store as well."""
    with tempfile.TemporaryDirectory(dir=children.scratch) as directory:
        database = Path(directory) / "kb.db"
        if children.port:
            children.calls()
        count = ONE_AT_A_TIME if contender == ONE else None
        found = children.work(contender, database, count=count)
        if children.port:
            found["model_calls"] = children.calls().get("embeddings", 0)
        if contender == OURS:
            again = children.work(contender, database)
            found["again_share"] = again["wall_s"] / found["wall_s"]
            if children.port:
                found["again_calls"] = children.calls().get("embeddings", 0)
        return found


def measure_runs(children: Children, contenders: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for contender in contenders:
        if contender == SLOWEST or contender.startswith(BETTER):
            continue
        found[contender] = attempt(lambda name=contender: measure_run(children, name))
    chosen: dict[str, tuple[Callable[..., str], list[str]]] = {
        SLOWEST: (min, list(ALONE)),
        BETTER: (max, ["LlamaIndex", "LangChain"]),
        BETTER + IN_MEMORY: (max, ["LlamaIndex" + IN_MEMORY, "LangChain" + IN_MEMORY]),
    }
    for name in set(chosen) & set(contenders):
        choose, among = chosen[name]
        rates = {
            other: found[other]["pages_per_second"] for other in among if "wall_s" in found.get(other, {})
        }
        found[name] = (
            {"pages_per_second": rates[choose(rates, key=rates.__getitem__)]}
            if rates
            else {"unsupported": f"none of {', '.join(among)} was measured"}
        )
    return found


def measure_memory(children: Children, contenders: Sequence[str]) -> dict[str, Any]:
    """The peak of one ingestion, and of one of ten times as many documents."""

    def measure() -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=children.scratch) as directory:
            below = Path(directory)
            pages = POSTGRESQL.pages()
            copies(first(pages, SHORT) if children.short else pages, COPIES, below / "copies")
            few = children.work(OURS, below / "few.db")
            children.short = False
            many = children.work(OURS, below / "many.db", directory=below / "copies")
            return {
                "documents": sum(1 for _ in (below / "copies").iterdir()),
                "peak_mib": many["peak_mib"],
                "grown": many["peak_mib"] / few["peak_mib"],
            }

    return {name: attempt(measure) for name in contenders}


async def time_searches(scratch: Path, short: bool) -> dict[str, Any]:
    from documents_judgments import judgments, sample

    import unwait

    roots = [POSTGRESQL.pages()[0].parent] + ([] if short else [PYTHON.root_of()])
    queries = [query.text for some in judgments(POSTGRESQL, TIMED).values() for query in some]
    queries = sample(queries, (TIMED if not short else TIMED // 5) + WARM)
    found: dict[str, Any] = {}
    async with unwait.open_store(str(scratch / "search.db")) as store:
        report = await unwait.ingest(roots, include=["*.html"], store=store, summarise="none", progress=False)
        for name, mode in ((FUSION, "hybrid"), (FULL_TEXT, "text"), (VECTORS, "vector")):
            times = []
            for query in queries:
                began = time.perf_counter()
                hits = await unwait.search(query, store=store, k=HITS, mode=mode)
                times.append((time.perf_counter() - began) * 1000)
                assert hits or mode == "text"
            times = sorted(times[WARM:])
            found[name] = {
                "chunks": report.chunks,
                "p50_ms": times[len(times) // 2],
                "p99_ms": times[len(times) * 99 // 100],
            }
    return found


def run(work: Awaitable[Any]) -> Any:
    with asyncio.Runner(loop_factory=lambda: new_loop("unwait")) as runner:
        return runner.run(work)  # type: ignore[arg-type]


def measure_search(children: Children, contenders: Sequence[str]) -> dict[str, Any]:
    found = attempt(lambda: run(time_searches(children.scratch, children.short)))
    return {name: found.get(name, found) for name in contenders}


def measure_retrieval(children: Children, contenders: Sequence[str]) -> dict[str, Any]:
    from documents_retrieval import measure

    found: dict[str, Any] = {}
    for corpus in (POSTGRESQL, PYTHON):
        said = attempt(lambda chosen=corpus: run(measure(chosen, children.scratch, children.short)))
        found |= {
            name: said.get(name, said) for name in contenders if name.startswith(corpus.title.split()[0])
        }
    return found


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it measures, or in its place why not."""
    try:
        return measure()
    except Unsupported as error:
        return {"unsupported": str(error)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


MEASURES: dict[str, Callable[[Children, Sequence[str]], dict[str, Any]]] = {
    "documents-local": measure_runs,
    "documents-api": measure_runs,
    "documents-memory": measure_memory,
    "documents-search": measure_search,
    "documents-retrieval": measure_retrieval,
}
assert MEASURES.keys() == CELLS.keys()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cell", choices=[*MEASURES, "work"])
    parser.add_argument("contenders", nargs="+")
    parser.add_argument("--port", type=int, help="of documents_server.py")
    parser.add_argument("--short", action="store_true", help=f"{SHORT} pages instead of all")
    parser.add_argument("--database", help="of a contender's process")
    parser.add_argument("--directory", help="pages in place of the corpus, for a contender's process")
    parser.add_argument("--count", type=int, help="of pages, for a contender's process")
    options = parser.parse_args()
    if options.cell == "work":
        options.contender = options.contenders[0]
        try:
            print(json.dumps(work_here(options)))
        except Unsupported as error:
            print(json.dumps({"unsupported": str(error)}))
        return 0
    port = options.port if CELLS[options.cell].server else None
    with tempfile.TemporaryDirectory(prefix="unwait-bench-") as scratch:
        children = Children(Path(scratch), port, options.short)
        print(json.dumps(MEASURES[options.cell](children, options.contenders)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
