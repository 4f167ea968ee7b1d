"""Random crowds under random limits: what must hold at every moment and at the end, whoever gives up when."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from unwait.flow.faults import Overloaded
from unwait.flow.limits import Auto, Limits, Rate, acquire_all

from .limits_support import assert_untouched, taken
from .virtual_clock import VirtualLoop

moments = st.sampled_from([0, 0, 0, 0.001, 0.05, 0.1, 0.3, 1, 2.5])
sometimes = st.one_of(st.none(), st.none(), moments)
keys = st.sampled_from("ab")


def key_of(item: str) -> str:
    return item


def played(main: Coroutine[Any, Any, None], *used: Limits) -> None:
    """Run it; at the end nobody may hold or wait for anything, and later all must be there again."""
    loop = VirtualLoop()
    try:
        loop.run_until_complete(main)
        for limits in used:
            assert_untouched(limits, loop)
        loop.now += 100_000

        async def afterwards() -> None:
            for limits in used:
                if limits.in_force("a") is not None:
                    assert len(taken(limits, item="a")) == limits.in_force("a")

        if not any(limits._rate for limits in used):
            loop.run_until_complete(afterwards())
    finally:
        loop.close()


def cancelled_after(seconds: float | None, main: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.ensure_future(main)
    if seconds is not None:
        timer = asyncio.get_running_loop().call_later(seconds, task.cancel)
        task.add_done_callback(lambda _: timer.cancel())
    return task


@dataclass(frozen=True)
class Job:
    """One who comes `after` the one before, holds its permits for a time, and may be cancelled at any time."""

    after: float
    holds: float
    weight: int
    cost: int
    key: str
    cancelled: float | None
    end: str
    several: bool


jobs = st.builds(
    Job,
    after=moments,
    holds=moments,
    weight=st.sampled_from([1, 1, 1, 2, 3]),
    cost=st.sampled_from([0, 1, 10, 40, 100, 250]),
    key=keys,
    cancelled=sometimes,
    end=st.sampled_from(["ok", "ok", "error", "overload", "refund", "less"]),
    several=st.booleans(),
)


@dataclass
class Admitted:
    """What the crowd saw of an admission."""

    place: int
    time: float
    weight: int
    cost: float
    several: bool
    counts: bool = True


class Crowd:
    """Plays jobs under `limits`, some also under `gate`, and keeps what happened."""

    def __init__(self, limits: Limits, gate: Limits, keyed: bool, concurrency: int | None) -> None:
        self.limits = limits
        self.gate = gate
        self.keyed = keyed
        self.concurrency = concurrency
        self.in_use: dict[str, int] = defaultdict(int)
        self.through_the_gate = 0
        self.admitted: dict[str, list[Admitted]] = defaultdict(list)

    async def play(self, script: list[Job]) -> None:
        tasks = []
        for place, job in enumerate(script):
            await asyncio.sleep(job.after)
            tasks.append(cancelled_after(job.cancelled, self.one(place, job)))
        if tasks:
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def one(self, place: int, job: Job) -> None:
        lane = job.key if self.keyed else ""
        asked: dict[str, Any] = {"item": job.key, "cost": job.cost, "weight": job.weight}
        if job.several:
            permits = await acquire_all([self.gate, self.limits], **asked)
        else:
            permits = [await self.limits.acquire(**asked)]
        now = asyncio.get_running_loop().time()
        admitted = Admitted(place, now, job.weight, job.cost, job.several)
        self.admitted[lane].append(admitted)
        self.in_use[lane] += job.weight
        self.through_the_gate += job.weight * job.several
        if self.concurrency is not None:
            assert self.in_use[lane] <= max(self.concurrency, job.weight)
        assert self.through_the_gate <= 3
        try:
            await asyncio.sleep(job.holds)
        finally:
            self.in_use[lane] -= job.weight
            self.through_the_gate -= job.weight * job.several
            admitted.counts = job.end != "refund"
            for permit in permits:
                if job.end == "refund":
                    permit.refund()
                elif job.end == "less":
                    permit.spent(job.cost / 2)
                    admitted.cost = job.cost / 2
                error = {"error": ValueError(), "overload": Overloaded(retry_after=job.holds)}.get(job.end)
                permit.release(error)


def in_windows(log: list[Admitted], period: float) -> list[list[Admitted]]:
    """What each window that ends with an admission holds."""
    return [[one for one in log if last.time - period < one.time <= last.time] for last in log]


@given(
    script=st.lists(jobs, max_size=20),
    concurrency=st.sampled_from([None, 1, 2, 3, 7, Auto(start=2, high=4)]),
    rate=st.sampled_from([None, Rate(2, 1), Rate(5, 1, burst=5), Rate(3, 2, burst=2)]),
    tokens=st.sampled_from([None, Rate(100, 1), Rate(100, 3, burst=100)]),
    keyed=st.booleans(),
)
@settings(deadline=None)
def test_nobody_gets_too_much_nobody_is_forgotten_and_nothing_is_lost(
    script, concurrency, rate, tokens, keyed
):
    limits = Limits(concurrency=concurrency, rate=rate, tokens=tokens, per=key_of if keyed else None)
    gate = Limits(concurrency=3)
    if isinstance(concurrency, int):
        script = [replace(job, weight=min(job.weight, concurrency)) for job in script]
    highest = concurrency.high if isinstance(concurrency, Auto) else concurrency
    crowd = Crowd(limits, gate, keyed, highest)
    # If somebody starved, the virtual clock would say so.
    played(crowd.play(script), limits, gate)

    for log in crowd.admitted.values():
        for several in (False, True):
            in_order = sorted((one for one in log if one.several is several), key=lambda one: one.place)
            assert all(before.time <= after.time for before, after in pairwise(in_order)), "overtaken"
        counted = [one for one in log if one.counts]
        if rate is not None:
            for window in in_windows(counted, rate.period):
                assert len(window) <= rate.amount
        if tokens is not None:
            costly = [one for one in counted if one.cost]
            for window in in_windows(costly, tokens.period):
                # One above the amount is admitted alone.
                assert sum(one.cost for one in window) <= tokens.amount or len(window) == 1


@dataclass(frozen=True)
class Node:
    """A call that makes the calls below it at once, after a time; a leaf does nothing else than take time."""

    key: str
    takes: float
    cancelled: float | None
    below: tuple[Node, ...] = ()


leaves = st.builds(Node, key=keys, takes=moments, cancelled=sometimes)
trees = st.recursive(
    leaves,
    lambda below: st.builds(
        Node,
        key=keys,
        takes=moments,
        cancelled=sometimes,
        below=st.lists(below, min_size=1, max_size=4).map(tuple),
    ),
    max_leaves=12,
)


@given(
    forest=st.lists(trees, max_size=4),
    concurrency=st.integers(1, 3),
    keyed=st.booleans(),
    several=st.booleans(),
)
@settings(deadline=None)
def test_calls_within_calls_always_end_and_no_more_leaves_run_than_the_limit(
    forest, concurrency, keyed, several
):
    limits = Limits(concurrency=concurrency, per=key_of if keyed else None)
    gate = Limits(concurrency=1)
    running: dict[str, int] = defaultdict(int)

    async def call(node: Node) -> None:
        with ExitStack() as held:
            for permit in await acquire_all([limits, gate] if several else [limits], node.key):
                held.enter_context(permit)
            lane = node.key if keyed else ""
            if not node.below:
                running[lane] += 1
                assert running[lane] <= (1 if several else concurrency)
            try:
                await asyncio.sleep(node.takes)
            finally:
                running[lane] -= not node.below
            tasks = [cancelled_after(child.cancelled, call(child)) for child in node.below]
            try:
                ended = await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                for task in tasks:
                    task.cancel()
        for result in ended:
            if result is not None and not isinstance(result, asyncio.CancelledError):
                raise result

    async def main() -> None:
        await asyncio.gather(*(call(tree) for tree in forest))

    played(main(), limits, gate)
