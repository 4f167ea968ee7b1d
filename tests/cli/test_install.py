"""`unwait.install()`: asyncio's defaults become ours, in a process of its own."""

import sys
from typing import Any

import pytest

USES = """\
import asyncio
from asyncio import new_event_loop as imported_early
import unwait
unwait.install()
policy = None if {modern} else asyncio.get_event_loop_policy()
unwait.install()
assert {modern} or asyncio.get_event_loop_policy() is policy

async def main():
    return type(asyncio.get_running_loop())

assert asyncio.run(main()) is unwait.Loop
with asyncio.Runner() as runner:
    assert runner.run(main()) is unwait.Loop
with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
    assert runner.run(main()) is asyncio.SelectorEventLoop
from asyncio import new_event_loop as imported_late
early = () if {modern} else (imported_early,)
for factory in (asyncio.new_event_loop, asyncio.events.new_event_loop, imported_late, *early):
    loop = factory()
    assert type(loop) is unwait.Loop, factory
    loop.close()
"""

# The way of Python 3.14 and later works on earlier ones too: nothing but the version stands between them.
PRETEND = "import sys; sys.version_info = (3, 14, 0, 'final', 0)\nimport unwait.loop\n"

STRICT = {"PYTHONWARNINGS": "error,ignore:unwait's compiled event loop:RuntimeWarning"}


@pytest.mark.parametrize("modern", [True, False])
def test_defaults(python: Any, modern: bool) -> None:
    modern = modern or sys.version_info >= (3, 14)
    done = python("-c", (PRETEND if modern else "") + USES.format(modern=modern), env=STRICT)
    assert (done.returncode, done.stderr) == (0, "")


def test_other_threads_and_forks(python: Any) -> None:
    code = """\
import asyncio, os, threading, unwait
unwait.install()
async def main():
    assert type(asyncio.get_running_loop()) is unwait.Loop
    print("ours", flush=True)
thread = threading.Thread(target=lambda: asyncio.run(main()))
thread.start()
thread.join()
if os.fork() == 0:
    asyncio.run(main())
else:
    os.wait()
"""
    done = python("-c", code, env=STRICT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ours\nours\n", "")


def test_a_policy_set_later_wins(python: Any) -> None:
    code = """\
import sys
if sys.version_info < (3, 14):
    import asyncio, unwait
    unwait.install()
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
    async def main():
        assert type(asyncio.get_running_loop()) is asyncio.SelectorEventLoop
    asyncio.run(main())
"""
    done = python("-c", code, env=STRICT)
    assert (done.returncode, done.stderr) == (0, "")
