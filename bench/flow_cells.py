"""What is measured of unwait.flow, and the targets: the tables that the runner and the renderer share.

What is measured of another part of unwait (bench/documents_cells.py) is told in the same words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from report import ROOT

OURS = "unwait"


@dataclass(frozen=True)
class FlowCell:
    """One piece of work, done by each contender in turn in one process; the first contender is unwait's."""

    name: str
    title: str
    contenders: tuple[str, ...]
    metrics: tuple[str, ...]
    rounds: int | None = None
    """At most so many rounds, for what counts and does not time; None: as many as the run has."""
    server: bool = False
    """Whether the server of its part takes part."""
    yardsticks: tuple[str, ...] = ()
    """Contenders that do another work, or a part of it, and are no rivals."""
    seconds: int = 60
    """When to give up."""


@dataclass(frozen=True)
class FlowRow:
    """A target: `metric` of the cell's first contender or of `of`, as it is or set against another contender's."""

    cell: str
    title: str
    metric: str
    limit: Literal["at most", "at least"]
    target: float
    against: str = ""
    by: Literal["itself", "ratio", "difference"] = "itself"
    of: str = ""
    digits: int = 2

    @property
    def name(self) -> str:
        """The heading of its explanation in notes.md."""
        return "-".join(filter(None, (self.cell, self.of, self.metric, self.against)))


@dataclass(frozen=True)
class Metric:
    """How a figure is chosen among the rounds, and written."""

    title: str
    best: Literal["least", "most", "worst least", "worst most"]
    """Times take the best round, as the least disturbed; promises (`worst …`) take the worst."""
    digits: int = 2


@dataclass(frozen=True)
class Part:
    """A part of unwait: its name in the saved results, the page with its figures, and what is measured.

    `NAME.py` measures it, `server` is the script that serves it, with its arguments. Both run on a core each, or, if
    not `pinned`, wherever there is one.
    """

    name: str
    page: Path
    server: tuple[str, ...]
    pinned: bool
    peers: tuple[str, ...]
    cells: dict[str, FlowCell]
    rows: tuple[FlowRow, ...]
    metrics: dict[str, Metric]


METRICS = {
    "cpu_us": Metric("CPU µs per item", "least"),
    "per_second": Metric("items per second", "most", 0),
    "grown_mib": Metric("growth of peak memory, MiB", "worst least", 1),
    "items": Metric("items", "least", 0),
    "exceeded": Metric("windows exceeded", "worst least", 0),
    "fullest": Metric("fullest window / allowed", "worst least"),
    "used": Metric("used / allowed", "worst most", 3),
    "longest_wait": Metric("longest wait for a permit, s", "worst least", 1),
}

WORK = (
    OURS,
    "unwait, rate + retry + time-outs",
    "worker pool",
    "worker pool, prefilled",
    "gather + semaphore",
    "tqdm.asyncio + semaphore",
    "aiometer",
)

FLOW_CELLS = {
    cell.name: cell
    for cell in (
        FlowCell("flow-map", "200,000 coroutines that do nothing, limit 100", WORK, ("cpu_us",)),
        FlowCell("flow-map-wait", "50,000 coroutines that wait once, limit 100", WORK, ("cpu_us",)),
        FlowCell(
            "flow-memory",
            "streaming from a generator, against 10,000 items",
            (OURS, "worker pool", "aiometer", "tqdm.asyncio"),
            ("items", "grown_mib"),
            rounds=1,
            seconds=120,
        ),
        FlowCell(
            "flow-fetch",
            "5,000 small bodies over loopback, limit 100",
            (OURS, "aiohttp", "httpx"),
            ("per_second", "cpu_us"),
            server=True,
            seconds=120,
        ),
        FlowCell(
            "flow-rate",
            "500 waiters on 1,000 per second, for 10 s",
            (OURS, "aiolimiter", "aiolimiter, 1 per ms", "aiometer"),
            ("exceeded", "fullest", "used"),
            rounds=1,
        ),
        FlowCell(
            "flow-journal",
            "50,000 coroutines that return a small dict",
            (OURS, "no journal", "line appended"),
            ("cpu_us",),
        ),
        FlowCell(
            "flow-retry",
            "50,000 calls of a decorated function, none of which fails",
            (OURS, "tenacity", "stamina"),
            ("cpu_us",),
        ),
        FlowCell(
            "flow-tokens",
            "calls of mixed size on 60,000 tokens per 6 s, for 18 s",
            (OURS, "aiolimiter", "bucket that starts full"),
            ("exceeded", "fullest", "used", "longest_wait"),
            rounds=1,
            seconds=90,
        ),
    )
}

FLOW_ROWS = (
    FlowRow(
        "flow-map",
        "`map`, CPU per item ÷ a hand-written worker pool's",
        "cpu_us",
        "at most",
        1.3,
        "worker pool",
        "ratio",
    ),
    FlowRow("flow-map", "`map`, CPU per item ÷ aiometer's", "cpu_us", "at most", 0.5, "aiometer", "ratio"),
    FlowRow(
        "flow-memory",
        "`stream` of 1,000,000 items: MiB above that of 10,000",
        "grown_mib",
        "at most",
        10,
    ),
    FlowRow(
        "flow-fetch",
        "`fetch`, requests per second ÷ a bare aiohttp gather's",
        "per_second",
        "at least",
        0.90,
        "aiohttp",
        "ratio",
    ),
    FlowRow(
        "flow-fetch",
        "`fetch`, requests per second ÷ httpx's",
        "per_second",
        "at least",
        5,
        "httpx",
        "ratio",
    ),
    FlowRow("flow-rate", "1,000 per second: windows exceeded", "exceeded", "at most", 0, digits=0),
    FlowRow("flow-rate", "1,000 per second: used ÷ allowed", "used", "at least", 0.98),
    FlowRow(
        "flow-journal",
        "the journal, CPU µs more per item",
        "cpu_us",
        "at most",
        15,
        "no journal",
        "difference",
    ),
    FlowRow(
        "flow-tokens", "tokens of calls of mixed size: windows exceeded", "exceeded", "at most", 0, digits=0
    ),
    FlowRow("flow-tokens", "tokens of calls of mixed size: used ÷ allowed", "used", "at least", 0.95),
)

FLOW = Part(
    "flow",
    ROOT / "docs" / "flow.md",
    ("servers.py", "aiohttp", OURS),
    pinned=True,
    peers=("aiohttp", "aiolimiter", "aiometer", "httpx", "stamina", "tenacity", "tqdm"),
    cells=FLOW_CELLS,
    rows=FLOW_ROWS,
    metrics=METRICS,
)
