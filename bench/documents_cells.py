"""What is measured of `unwait ingest` and `unwait search`, and the targets."""

from __future__ import annotations

from flow_cells import OURS, FlowCell, FlowRow, Metric, Part
from report import ROOT

NO_SUMMARIES = "unwait, no summaries"
SEQUENTIAL = "sequential script"
ONE = "one at a time"
ALONE = ("download alone", "extract and chunk alone", "embed alone", "save alone")
SLOWEST = "slowest stage alone"
IN_MEMORY = ", in memory"
BETTER = "the better framework"
FUSION, FULL_TEXT, VECTORS = "fusion", "full text", "vectors"
SETS = {
    "PostgreSQL, index entries": ("postgresql-doc-15", "index"),
    "PostgreSQL, sentences": ("postgresql-doc-15", "sentence"),
    "Python, index entries": ("python3.11-doc", "index"),
    "Python, sentences": ("python3.11-doc", "sentence"),
    "Python, FAQ": ("python3.11-doc", "faq"),
}

METRICS = {
    "pages_per_second": Metric("pages per second", "most", 0),
    "wall_s": Metric("seconds", "least"),
    "cpu_s": Metric("CPU seconds", "least"),
    "chunks": Metric("chunks", "worst least", 0),
    "model_calls": Metric("model calls", "worst least", 0),
    "peak_mib": Metric("peak memory, MiB", "worst least", 0),
    "again_share": Metric("second run ÷ first", "least", 3),
    "again_calls": Metric("model calls of the second run", "worst least", 0),
    "lag_p99_ms": Metric("lag of the loop, p99, ms", "worst least", 1),
    "grown": Metric("peak memory ÷ that of a tenth", "worst least"),
    "documents": Metric("documents", "worst least", 0),
    "p50_ms": Metric("p50, ms", "least", 1),
    "p99_ms": Metric("p99, ms", "least", 1),
    "queries": Metric("questions", "worst least", 0),
    "recall": Metric("recall@10", "worst most", 3),
    "mrr": Metric("MRR@10", "worst most", 3),
    "recall_ahead": Metric("recall@10 above the better one", "worst most", 3),
    "mrr_ahead": Metric("MRR@10 above the better one", "worst most", 3),
}

CELLS = {
    cell.name: cell
    for cell in (
        FlowCell(
            "documents-local",
            "PostgreSQL's documentation from local files, embedded defaults",
            (OURS, NO_SUMMARIES, SEQUENTIAL),
            ("pages_per_second", "cpu_s", "chunks", "peak_mib", "again_share", "lag_p99_ms"),
            yardsticks=(NO_SUMMARIES,),
            seconds=180,
        ),
        FlowCell(
            "documents-api",
            "the same from a server (50 ms), vectors from an API (100 ms), limit 64",
            (
                OURS,
                SLOWEST,
                *ALONE,
                "LlamaIndex",
                "LlamaIndex" + IN_MEMORY,
                "LangChain",
                "LangChain" + IN_MEMORY,
                "LangChain, batches of 100" + IN_MEMORY,
                BETTER,
                BETTER + IN_MEMORY,
                ONE,
            ),
            ("pages_per_second", "cpu_s", "chunks", "model_calls", "peak_mib", "again_share"),
            rounds=2,
            server=True,
            yardsticks=(SLOWEST, *ALONE, ONE, BETTER, BETTER + IN_MEMORY),
            seconds=300,
        ),
        FlowCell(
            "documents-memory",
            "ten copies of each page, a word of each copy its own",
            (OURS,),
            ("documents", "peak_mib", "grown"),
            rounds=1,
            seconds=300,
        ),
        FlowCell(
            "documents-search",
            "a search, warm, in both documentations",
            (FUSION, FULL_TEXT, VECTORS),
            ("chunks", "p50_ms", "p99_ms"),
            rounds=1,
            yardsticks=(FULL_TEXT, VECTORS),
            seconds=120,
        ),
        FlowCell(
            "documents-retrieval",
            "what is found for people's own questions, among 10 pages",
            tuple(f"{name}: {way}" for name in SETS for way in (FUSION, FULL_TEXT, VECTORS)),
            ("queries", "recall", "mrr"),
            rounds=1,
            seconds=300,
        ),
    )
}

ROWS = (
    FlowRow(
        "documents-local",
        "local files, embedded defaults: pages per second ÷ a sequential script's",
        "pages_per_second",
        "at least",
        1.4,
        SEQUENTIAL,
        "ratio",
    ),
    FlowRow(
        "documents-api",
        "server and API: pages per second ÷ the slowest stage's alone",
        "pages_per_second",
        "at least",
        0.85,
        SLOWEST,
        "ratio",
    ),
    FlowRow(
        "documents-api",
        "server and API: pages per second ÷ one page at a time",
        "pages_per_second",
        "at least",
        20,
        ONE,
        "ratio",
    ),
    FlowRow(
        "documents-api",
        "server and API: ÷ the better of LlamaIndex and LangChain, saved to files",
        "pages_per_second",
        "at least",
        2,
        BETTER,
        "ratio",
    ),
    FlowRow(
        "documents-api",
        "server and API: ÷ the better of LlamaIndex and LangChain, nothing saved",
        "pages_per_second",
        "at least",
        2,
        BETTER + IN_MEMORY,
        "ratio",
    ),
    FlowRow(
        "documents-local", "nothing changed, local files: second run ÷ first", "again_share", "at most", 0.1
    ),
    FlowRow(
        "documents-api", "nothing changed, server and API: second run ÷ first", "again_share", "at most", 0.1
    ),
    FlowRow("documents-api", "nothing changed: model calls", "again_calls", "at most", 0, digits=0),
    FlowRow("documents-memory", "peak memory at ten times the documents ÷ at once", "grown", "at most", 1.3),
    FlowRow("documents-search", "a search in 20,000 chunks, p99, ms", "p99_ms", "at most", 15),
    *(
        FlowRow(
            "documents-retrieval",
            f"{name}: {what} of the fusion above the better of text and vectors",
            metric,
            "at least",
            0,
            of=f"{name}: {FUSION}",
            digits=3,
        )
        for name in SETS
        for metric, what in (("recall_ahead", "recall@10"), ("mrr_ahead", "MRR@10"))
    ),
)

DOCUMENTS = Part(
    "documents",
    ROOT / "docs" / "documents.md",
    ("documents_server.py",),
    pinned=False,
    peers=(
        "langchain-core",
        "langchain-text-splitters",
        "llama-index-core",
        "selectolax",
        "semantic-text-splitter",
        "wordllama",
    ),
    cells=CELLS,
    rows=ROWS,
    metrics=METRICS,
)
