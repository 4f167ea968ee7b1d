"""The account of an ingestion: a row for each source, and what all of them came to."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

from unwait.flow.pipeline_report import StageReport
from unwait.flow.stats import Samples

OutcomeName = Literal["added", "updated", "unchanged", "pruned", "failed"]
OUTCOMES: tuple[OutcomeName, ...] = ("added", "updated", "unchanged", "pruned", "failed")

_TICK = 0.01  # seconds between two looks at the loop's lag


@dataclass(slots=True)
class Row:
    """What became of one source, reported once that is stored.

    `stage`, `kind` and `error` tell of a failure: where, the cause in a word or two, the whole text. `embedded` chunks
    got their vectors now, `reused` ones had them before. `seconds` passed in all stages, without their queues.
    """

    uri: str
    outcome: OutcomeName = "added"
    stage: str | None = None
    kind: str | None = None
    error: str | None = None
    format: str | None = None
    chunks: int = 0
    embedded: int = 0
    reused: int = 0
    records: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For `--report`: what is not known is left out."""
        whole = {name: value for name, value in asdict(self).items() if value is not None}
        return {**whole, "seconds": round(self.seconds, 6)}


@dataclass(frozen=True, slots=True)
class Counts:
    """What models that are paid for did: `calls` made, `kept` answers of earlier calls used, `tokens` of the calls."""

    calls: int = 0
    kept: int = 0
    tokens: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.calls + other.calls, self.kept + other.kept, self.tokens + other.tokens)

    def __sub__(self, other: Counts) -> Counts:
        return Counts(self.calls - other.calls, self.kept - other.kept, self.tokens - other.tokens)


@dataclass(frozen=True, slots=True)
class StageSummary:
    """What a stage did: shares (0 to 1) of its capacity that were busy and blocked; `deepest` its queue at most."""

    name: str
    passed: int
    failed: int
    busy: float
    blocked: float
    deepest: int

    @classmethod
    def of(cls, stage: StageReport) -> StageSummary:
        return cls(stage.name, stage.passed, stage.failed, stage.busy, stage.blocked, stage.deepest)


@dataclass(slots=True)
class IngestReport:
    """What an ingestion came to.

    `causes` counts failures by kind. `embedded` chunks got vectors from the model, `reused` ones had them before.
    `model_calls` were made to models that are paid for, `kept_calls` had been finished by a run that was cut off. Lag
    is how late the loop came to what was due, in seconds. `peak_memory` is that of the process, in bytes.
    """

    store: str
    outcomes: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    chunks: int = 0
    embedded: int = 0
    reused: int = 0
    records: int = 0
    model_calls: int = 0
    kept_calls: int = 0
    tokens: int = 0
    elapsed: float = 0.0
    lag_p99: float = 0.0
    lag_max: float = 0.0
    peak_memory: int = 0
    bottleneck: str | None = None
    stages: Sequence[StageSummary] = ()
    not_pruned: Sequence[str] = ()
    """Origins that could not be listed to their end, so that nothing of them was removed."""
    other_vectors: int = 0
    """Documents with vectors of another model, counted by the run in which the model changes."""

    @property
    def failed(self) -> int:
        """How many sources failed."""
        return self.outcomes["failed"]

    @property
    def sources(self) -> int:
        """How many sources there were."""
        return sum(count for name, count in self.outcomes.items() if name != "pruned")

    def add(self, row: Row) -> None:
        """Count a row."""
        self.outcomes[row.outcome] += 1
        if row.outcome == "failed":
            self.causes[row.kind or "error"] += 1
        elif row.outcome in ("added", "updated"):
            self.chunks += row.chunks
            self.records += row.records
        self.embedded += row.embedded
        self.reused += row.reused

    def count(self, models: Counts) -> None:
        """Add what models did."""
        self.model_calls += models.calls
        self.kept_calls += models.kept
        self.tokens += models.tokens

    def to_json(self) -> dict[str, Any]:
        """The whole as JSON."""
        return {
            **asdict(self),
            "outcomes": {name: self.outcomes[name] for name in OUTCOMES},
            "causes": dict(self.causes.most_common()),
            "stages": [asdict(stage) for stage in self.stages],
        }

    def __str__(self) -> str:
        counts = [f"{self.outcomes[name]:,} {name}" for name in OUTCOMES if self.outcomes[name]]
        sources = f"{self.sources:,} source{'' if self.sources == 1 else 's'}"
        lines = [f"{sources} in {self.elapsed:.2f} s: {', '.join(counts) or 'nothing to do'}"]
        if self.chunks:
            lines.append(
                f"chunks      {self.chunks:,}: {self.embedded:,} embedded, {self.reused:,} had their vectors"
            )
        if self.records:
            lines.append(f"records     {self.records:,}")
        if self.model_calls or self.kept_calls:
            kept = f", {self.kept_calls:,} were finished before" if self.kept_calls else ""
            lines.append(f"model calls {self.model_calls:,}{kept}; {self.tokens:,} tokens")
        if self.bottleneck is not None:
            busy = max((stage.busy for stage in self.stages if stage.name == self.bottleneck), default=0.0)
            lines.append(f"bottleneck  {self.bottleneck}, {100 * busy:.0f} % busy")
        lines.append(
            f"loop lag    p99 {1000 * self.lag_p99:.1f} ms, at most {1000 * self.lag_max:.1f} ms; "
            f"memory at most {self.peak_memory / 2**20:.0f} MiB"
        )
        lines += [f"{count:7,} failed: {kind}" for kind, count in self.causes.most_common()]
        lines += [
            f"not listed to the end, so nothing of it was pruned: {origin}" for origin in self.not_pruned
        ]
        if self.other_vectors:
            lines.append(
                f"{self.other_vectors:7,} documents keep vectors of another model, and only their words are found: "
                "ingest them again"
            )
        return "\n".join(lines)


def peak_memory() -> int:
    """The most memory this process ever had, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class LagMeter:
    """Measures, inside `with`, how late the running loop comes to what is due."""

    def __init__(self) -> None:
        self._samples = Samples()
        self.most = 0.0

    @property
    def p99(self) -> float:
        """What 99 of 100 looks did not exceed, in seconds."""
        return self._samples.percentile(0.99)

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_TICK, self._look, self._loop.time() + _TICK)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def _look(self, due: float) -> None:
        now = self._loop.time()
        lag = max(0.0, now - due)
        self._samples.add(lag)
        self.most = max(self.most, lag)
        self._timer = self._loop.call_at(now + _TICK, self._look, now + _TICK)
