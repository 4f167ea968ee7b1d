"""Runs one module of `test.test_asyncio` in this process, and writes an event a line to a file as it goes.

Started by `module_run.py` with one argument, the path of a JSON object: `module`, `loop`, `events` (the file
to append to), `only` (ids of tests or classes; empty: all), `without` (ids of tests that have run),
`run_excluded` (True: what the table excludes runs too), `pristine` (True: the tests `only`, by CPython's own
classes on asyncio itself; nothing is bound or excluded).
"""

from __future__ import annotations

import asyncio
import faulthandler
import importlib
import json
import os
import signal
import sys
import traceback
import types
import unittest
from collections.abc import Iterator
from typing import Any

import table
from bindings import BINDINGS, Bound, ChosenLoop, bind, bind_mixins, choose, make_default

PACKAGE = "test.test_asyncio"


class Events:
    """Appends events to a file, each in one write, so that a crash loses none; a forked child adds none."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self.pid = os.getpid()

    def write(self, event: str, **fields: Any) -> None:
        if os.getpid() == self.pid:
            os.write(self.fd, (json.dumps({"event": event, **fields}) + "\n").encode())


class Reporter(unittest.TestResult):
    """Tells the parent of each test when it starts and how it ended."""

    def __init__(self, events: Events, loop: ChosenLoop | None) -> None:
        super().__init__()
        self.events = events
        self.loop = loop
        self.built_before = 0

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.built_before = self.loop.built if self.loop else 0
        self.events.write("start", id=test_id(test))

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        built = self.loop.built - self.built_before if self.loop else 0
        self.events.write("stop", id=test_id(test), built=built)

    def ended(self, test: Any, outcome: str, error: Any = None, cause: str = "") -> None:
        text = ""
        if error:
            cause = one_line(error)
            text = "".join(traceback.format_exception(*error))
        self.events.write("outcome", id=test_id(test), outcome=outcome, cause=cause, traceback=text)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.ended(test, "passed")

    def addError(self, test: Any, error: Any) -> None:
        self.ended(test, "failed", error)

    addFailure = addError

    def addSubTest(self, test: unittest.TestCase, subtest: Any, error: Any) -> None:
        if error is not None:
            self.ended(test, "failed", error)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.ended(test, "skipped", cause=reason)

    def addExpectedFailure(self, test: unittest.TestCase, error: Any) -> None:
        self.ended(test, "passed")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self.ended(test, "failed", cause="passed, though CPython expects it to fail")


def test_id(test: Any) -> str:
    """`module.Class.test`, or what unittest calls a failed class or module fixture."""
    return str(test.id()).replace(PACKAGE + ".", "")


def one_line(error: Any) -> str:
    """The exception's type and first line, and the line of the test suite it came through last."""
    kind, value, trace = error
    last = traceback.format_exception_only(kind, value)[-1].strip()
    text = " ".join(f"{kind.__name__}: {value}".split()) if str(value) else last
    frames = [
        frame for frame in traceback.extract_tb(trace) if f"{os.sep}test_asyncio{os.sep}" in frame.filename
    ]
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return (text if len(text) <= 200 else text[:197] + "...") + place


def flat(suite: unittest.TestSuite) -> Iterator[Any]:
    for part in suite:
        if isinstance(part, unittest.TestSuite):
            yield from flat(part)
        else:
            yield part


def load(module: types.ModuleType) -> list[Any]:
    return list(flat(unittest.defaultTestLoader.loadTestsFromModule(module)))


def bound_tests(
    module: types.ModuleType, loop: ChosenLoop, spec: dict[str, Any], events: Events
) -> list[Any]:
    """The module's tests on the chosen loop, without those that the table excludes or the caller did not ask
    for.
    """
    bound = bind(module, loop)
    tests = [test for test in load(module) if type(test).__name__ not in bound.replaced]
    if spec["only"]:
        tests = [
            test for test in tests if any(f"{test_id(test)}.".startswith(f"{name}.") for name in spec["only"])
        ]
    rows = [row for row in table.load() if row.applies_to(sys.version_info[:2])]
    ids = [test_id(test) for test in tests]
    excluded = {name: reason for name in ids if (reason := table.reason(rows, name))}
    events.write("collected", ids=ids, excluded=excluded, mixin_of=bound.mixin_of, lost=bound.lost)
    return [test for test in tests if spec["run_excluded"] or test_id(test) not in excluded]


def pristine_tests(module: types.ModuleType, wanted: list[str]) -> list[Any]:
    """The same tests in CPython's own classes, under the ids that they have when bound."""
    originals = {test_id(test): test for test in load(module)}
    short = module.__name__.rpartition(".")[2]
    bound = bind_mixins(module, short, BINDINGS[short]) if short in BINDINGS else Bound()
    tests = []
    for name in wanted:
        _, cls, method = name.split(".")
        classes = bound.replaced if cls == bound.name else [cls]
        test = next(
            (originals[full] for cls in classes if (full := f"{short}.{cls}.{method}") in originals), None
        )
        if test is not None:
            test.id = lambda name=name: name
            tests.append(test)
    return tests


def main() -> None:
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    faulthandler.enable()
    events = Events(spec["events"])
    support = importlib.import_module("test.support")
    # As `python -m test` does: no network, no resource that is slow or in somebody's way.
    support.use_resources = {}
    support.verbose = 0
    signal.signal(signal.SIGINT, signal.default_int_handler)

    loop = None if spec["pristine"] else choose(spec["loop"])
    if loop:
        make_default(loop)
    # Some tests expect that a loop has been set and unset in this thread, as CPython's own order of modules
    # brings about.
    asyncio.set_event_loop(None)
    try:
        module = importlib.import_module(f"{PACKAGE}.{spec['module']}")
    except unittest.SkipTest as skip:
        events.write("module_skipped", reason=str(skip))
        return
    tests = bound_tests(module, loop, spec, events) if loop else pristine_tests(module, spec["only"])
    tests = [test for test in tests if test_id(test) not in spec["without"]]
    unittest.TestSuite(tests).run(Reporter(events, loop))
    events.write("end")


if __name__ == "__main__":
    main()
