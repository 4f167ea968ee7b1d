"""The account of a pipeline's run: what each stage did, what it waited for, and which of them holds up the rest."""

from __future__ import annotations

from collections.abc import Callable

from unwait.flow.stats import Report, Samples


class StageReport:
    """The account of one stage.

    `taken` items came in, `passed` went on, `failed` left with an error. `calls` has the counters of its calls,
    as in the report of `map`. `queued` is what its queue holds, `deepest` the most that it ever held.
    """

    def __init__(self, name: str, concurrency: int, tasks: int, calls: Report) -> None:
        self.name = name
        self.concurrency = concurrency
        self.calls = calls
        self.taken = 0
        self.passed = 0
        self.failed = 0
        self.queued = 0
        self.deepest = 0
        self.blocked_seconds = 0.0
        self.samples = Samples()
        self._tasks = tasks

    @property
    def busy(self) -> float:
        """The share of its capacity (all it may run at once, all the time) spent in calls, limits and back-off."""
        calls = self.calls
        return self._share(calls.calling + calls.limited + calls.backing_off, self.concurrency)

    @property
    def blocked(self) -> float:
        """The share that waited for room in the next queue, for the consumer or for the journal."""
        return self._share(self.blocked_seconds, self._tasks)

    @property
    def waiting(self) -> float:
        """The share that had no items to work on."""
        return max(0.0, 1.0 - self.busy - self.blocked)

    @property
    def p50(self) -> float:
        """The median of the seconds that an item was in the stage."""
        return self.samples.percentile(0.50)

    @property
    def p95(self) -> float:
        """What 95 of 100 items did not take longer than, in seconds."""
        return self.samples.percentile(0.95)

    def _share(self, seconds: float, capacity: int) -> float:
        elapsed = self.calls.elapsed
        return min(1.0, seconds / (elapsed * capacity)) if elapsed > 0 else 0.0


class PipelineReport(Report):
    """The account of a pipeline's run: that of `map` for the items as a whole, and one of each stage in `stages`."""

    def __init__(self, clock: Callable[[], float], total: int | None) -> None:
        super().__init__(clock, total)
        self.stages: list[StageReport] = []

    @property
    def bottleneck(self) -> str | None:
        """The name of the stage that was busiest for what it may run at once: more of that would help most.

        None before the first call.
        """
        busiest = max(self.stages, key=lambda stage: stage.busy, default=None)
        return None if busiest is None or busiest.busy == 0 else busiest.name

    def end(self) -> None:
        """Stop the clocks."""
        super().end()
        for stage in self.stages:
            stage.calls.end()

    def __str__(self) -> str:
        heads = (
            "stage",
            "at once",
            "in",
            "out",
            "failed",
            "busy",
            "waiting",
            "blocked",
            "queue",
            "p50",
            "p95",
        )
        rows: list[tuple[str, ...]] = [heads]
        for stage in self.stages:
            counts = (stage.concurrency, stage.taken, stage.passed, stage.failed)
            shares = (f"{100 * share:.0f} %" for share in (stage.busy, stage.waiting, stage.blocked))
            seconds = (f"{value:.3f} s" for value in (stage.p50, stage.p95))
            rows.append((stage.name, *map(str, counts), *shares, str(stage.deepest), *seconds))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [super().__str__()]
        for row in rows:
            first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  ".join([first.strip().ljust(widths[0]), *others]))
        if self.bottleneck is not None:
            lines.append(f"bottleneck: {self.bottleneck}")
        return "\n".join(lines)
