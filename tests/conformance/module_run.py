"""One module of the suite: its worker processes, their time limits, and the outcome of every test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
POLL = 0.05
"""seconds between two looks at a worker's events"""

DUMP = 2.0
"""seconds a hung worker gets to print its stacks"""

OUTCOMES = ("passed", "failed", "skipped", "excluded", "broken here", "excluded but passes")


@dataclass(frozen=True)
class Limits:
    """In seconds: what one test may take, and one module with all its tests."""

    test: float
    module: float


@dataclass
class Test:
    """What became of one test: an outcome of `OUTCOMES`, the cause in a line, how many loops it built."""

    id: str
    outcome: str = ""
    cause: str = ""
    traceback: str = ""
    built: int = 0
    seconds: float = 0.0
    mixin: str | None = None


@dataclass
class ModuleResult:
    module: str
    tests: dict[str, Test] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0

    def count(self, outcome: str) -> int:
        return sum(test.outcome == outcome for test in self.tests.values())


@dataclass
class Run:
    """What the worker processes of one run wrote: tests by id, and what concerns the module as a whole."""

    tests: dict[str, Test] = field(default_factory=dict)
    collected: dict[str, Any] = field(default_factory=dict)
    module_skipped: str = ""
    running: str | None = None
    since: float = 0.0

    def take(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        if kind == "collected":
            self.collected = event
        elif kind == "module_skipped":
            self.module_skipped = event["reason"]
        elif kind == "start":
            self.running, self.since = event["id"], time.monotonic()
            self.tests[event["id"]] = Test(event["id"])
        elif kind == "stop":
            test = self.tests[event["id"]]
            test.built, test.seconds = event["built"], time.monotonic() - self.since
            self.running, self.since = None, time.monotonic()
        elif kind == "outcome":
            test = self.tests.setdefault(event["id"], Test(event["id"]))
            # A test may report more than one error (its own, then its tearDown's): the first one is the
            # cause.
            if test.outcome != "failed":
                test.outcome, test.cause = event["outcome"], event["cause"]
            test.traceback += event["traceback"]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a hung worker and whatever it started; its faulthandler prints every thread's stack first."""
    process.send_signal(signal.SIGABRT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(DUMP)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def follow(
    process: subprocess.Popen[bytes], events: Path, run: Run, limits: Limits, until: float
) -> tuple[bool, bool]:
    """Take a worker's events until it exits. Whether it came to its own end; whether it had to be ended."""
    run.running, run.since = None, time.monotonic()
    complete = hung = False
    pending = ""
    with events.open() as lines:
        while True:
            exited = process.poll() is not None
            pending += lines.read()
            *whole, pending = pending.split("\n")
            for line in whole:
                event = json.loads(line)
                complete = complete or event["event"] in ("end", "module_skipped")
                run.take(event)
            if exited:
                return complete, hung
            now = time.monotonic()
            if now > until or now - run.since > limits.test:
                hung = True
                end(process)
            time.sleep(POLL)


def stack_tail(output: str) -> str:
    """The last dump of stacks in a worker's output, or its last lines if it has none."""
    for mark in ("Fatal Python error:", "Current thread"):
        if mark in output:
            return output[output.rindex(mark) :]
    return "\n".join(output.splitlines()[-20:])


def one_process(spec: dict[str, Any], run: Run, limits: Limits, until: float, scratch: Path) -> bool:
    """Start one worker and follow it to its end. True: it ran all that it was asked to."""
    folder = scratch / f"run{time.monotonic_ns()}"
    cwd = folder / "cwd"
    cwd.mkdir(parents=True)
    events, output = folder / "events", folder / "output"
    events.touch()
    orders = folder / "orders.json"
    orders.write_text(json.dumps(spec | {"events": str(events)}))
    with output.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, str(WORKER), str(orders)],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        complete, hung = follow(process, events, run, limits, until)
    finally:
        # What its tests have left running goes with it; so does the worker itself if this run is interrupted.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    if not complete or hung:
        name = run.running or f"{spec['module']} (outside of any test)"
        test = run.tests.setdefault(name, Test(name))
        if hung:
            test.cause = f"hung: ended after {time.monotonic() - run.since:.0f} s"
        elif process.returncode < 0:
            test.cause = f"crashed: {signal.Signals(-process.returncode).name}"
        else:
            test.cause = f"the process ended with exit code {process.returncode}"
        text = output.read_text(errors="replace")
        last = next((line for line in reversed(text.splitlines()) if "Error" in line), "")
        if not run.running and last:
            test.cause += f": {last.strip()}"
        test.outcome, test.traceback = "failed", stack_tail(text)
        # Without a test to leave out, a next process would only fail in the same way.
        return run.running is None
    return True


def run_tests(spec: dict[str, Any], limits: Limits, scratch: Path) -> Run:
    """Run a worker, and after each hang or crash another one for the rest, within the module's time limit."""
    run = Run()
    until = time.monotonic() + limits.module
    while time.monotonic() < until:
        ran = [test.id for test in run.tests.values() if test.outcome]
        if one_process(spec | {"without": ran}, run, limits, until, scratch):
            break
    return run


def run_module(
    module: str, loop: str, limits: Limits, scratch: Path, only: list[str], *, run_excluded: bool = False
) -> ModuleResult:
    """Run one module's tests (`only`: ids of tests or classes; none: all) but for those that are excluded.

    `run_excluded` runs these as well, to find those that pass.
    """
    started = time.monotonic()
    spec = {"module": module, "loop": loop, "only": only, "run_excluded": False, "pristine": False}
    run = run_tests(spec, limits, scratch)
    result = ModuleResult(module, run.tests, run.collected.get("ids", []), run.module_skipped)
    tests, excluded = result.tests, run.collected.get("excluded", {})
    for name in result.ids:
        if not tests.setdefault(name, Test(name)).outcome and name not in excluded:
            tests[name] = Test(name, "failed", "not run: the module's time was up, or a fixture failed")
    for name in run.collected.get("lost", []):
        tests[name] = Test(name, "failed", "not bound: CPython's class has this test, the class here has not")
    if run_excluded:
        tests |= run_apart(spec | {"run_excluded": True}, list(excluded), result.ids, limits, scratch)
    for name, reason in excluded.items():
        # A test that passes without ever building the loop says nothing about the loop: it stays excluded.
        passes = tests[name].outcome == "passed" and tests[name].built > 0
        tests[name].outcome, tests[name].cause = ("excluded but passes" if passes else "excluded"), reason
    mark_broken_here(result, spec, limits, scratch)
    for name, mixin in run.collected.get("mixin_of", {}).items():
        if name in tests:
            tests[name].mixin = mixin
    result.seconds = time.monotonic() - started
    return result


def run_apart(
    spec: dict[str, Any], excluded: list[str], ids: list[str], limits: Limits, scratch: Path
) -> dict[str, Test]:
    """Run excluded tests, each in its own process: one that fails may leave the interpreter in any state.

    Those of a module that is excluded as a whole share one process.
    """
    groups = [excluded] if len(excluded) == len(ids) else [[name] for name in excluded]
    tests: dict[str, Test] = {}
    for group in filter(None, groups):
        ran = run_tests(spec | {"only": group}, limits, scratch).tests
        tests |= {name: ran[name] for name in group if name in ran}
    return tests


def mark_broken_here(result: ModuleResult, spec: dict[str, Any], limits: Limits, scratch: Path) -> None:
    """Run the failed tests again on asyncio itself; what fails there too is not the loop's fault."""
    failed = [test.id for test in result.tests.values() if test.outcome == "failed" and test.id in result.ids]
    if not failed:
        return
    control = run_tests(spec | {"only": failed, "pristine": True}, limits, scratch)
    for name in failed:
        if name in control.tests and control.tests[name].outcome == "failed":
            test = result.tests[name]
            test.outcome = "broken here"
            test.cause = f"fails on asyncio itself on this machine: {control.tests[name].cause}"
