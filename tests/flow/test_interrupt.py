"""Ctrl-C and SIGTERM, sent to real processes; what the handlers are before, during and after, in this one.

A child process here holds runs that consist of `graceful` and one item, which ends when a line comes in on stdin. It
says on stdout what happens to it, line by line, so that both sides wait for each other and nobody sleeps.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import subprocess
import sys
import threading

import pytest

from unwait.flow.interrupt import graceful

CHILD = """
import asyncio, contextlib, os, signal, sys, threading
import unwait, unwait.flow.interrupt as interrupt
from unwait.flow.interrupt import graceful

# A test suite that runs in the background of a shell inherits that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
kind, how = sys.argv[1:]
make = {"asyncio": asyncio.SelectorEventLoop, "unwait": unwait.Loop}[kind]

def say(text):
    os.write(1, f"{text}\\n".encode())

async def line():
    loop = asyncio.get_running_loop()
    come = loop.create_future()
    loop.add_reader(0, lambda: come.done() or come.set_result(os.read(0, 100)))
    try:
        return await come
    finally:
        loop.remove_reader(0)

async def work(name="run", *, item=line, grace=60.0, count=1, saved="4 done and saved in run.db"):
    running = asyncio.ensure_future(item())
    def stop():
        say(f"{name} stop")
        return count
    def abort():
        say(f"{name} abort")
        running.cancel()
    with graceful(stop, abort, lambda: saved, grace):
        say(f"{name} ready")
        try:
            await running
            say(f"{name} finished")
        except asyncio.CancelledError:
            say(f"{name} cancelled")
            raise

def handlers():
    return [getattr(signal.getsignal(number), "__name__", signal.getsignal(number).__class__.__name__)
            for number in (signal.SIGINT, signal.SIGTERM)]

def start(main):
    if how == "runner":
        with asyncio.Runner(loop_factory=make) as runner:
            runner.run(main)
    else:
        loop = make()
        try:
            loop.run_until_complete(main)
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
"""

FINISHING = "interrupted: finishing 1 running item, at most 60 s; again to stop at once\n"
AGAIN = "interrupted again: stopping at once\n"
SAVED = "4 done and saved in run.db\n"


class Child:
    """A process that runs `CHILD` and then a test's own code."""

    def __init__(self, code, kind, how):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD + code, kind, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def expect(self, *lines):
        for line in lines:
            assert self.process.stdout.readline() == line + "\n"

    def errors(self, *lines):
        for line in lines:
            assert self.process.stderr.readline() == line

    def go_on(self):
        self.process.stdin.write("go on\n")

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        """The exit code, and what is left on stdout and stderr."""
        self.process.stdin.close()
        output, errors = self.process.stdout.read(), self.process.stderr.read()
        return self.process.wait(), output.splitlines(), errors


@pytest.fixture(params=["runner", "by hand"])
def how(request):
    """Whether asyncio.Runner runs the loop or the program itself."""
    return request.param


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def number(request):
    return request.param


@pytest.fixture
def child(loop_kind, request):
    """Starts children on the loop under test."""
    children = []

    def start(code, how="runner"):
        children.append(Child(code, loop_kind, how))
        return children[-1]

    yield start
    for made in children:
        made.process.kill()
        made.process.wait()
        for pipe in (made.process.stdin, made.process.stdout, made.process.stderr):
            pipe.close()


def test_the_first_signal_lets_what_runs_finish(child, how, number):
    one = child(
        """
async def main():
    await work()
    await asyncio.sleep(0)
    say("not reached")

try:
    start(main())
finally:
    say(handlers())
""",
        how,
    )
    one.expect("run ready")
    one.signal(number)
    one.expect("run stop")
    one.errors(FINISHING)
    one.go_on()
    one.expect("run finished")
    code, output, errors = one.end()
    assert output == ["['default_int_handler', 'Handlers']"]
    assert errors.startswith(SAVED)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    # Python ends with the signal itself, as a shell expects it: 130 there.
    assert code == -signal.SIGINT


def test_a_shell_sees_exit_code_130(number, loop_kind):
    script = f"""
async def main():
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), {int(number)})
    await work(item=lambda: asyncio.sleep(0.01))
    await asyncio.sleep(0)

start(main())
"""
    shell = subprocess.run(
        ["sh", "-c", '"$@"; echo $?', "sh", sys.executable, "-c", CHILD + script, loop_kind, "runner"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shell.stdout.splitlines()[-1] == "130"


def test_the_second_signal_stops_at_once(child, how, number):
    one = child("start(work())", how)
    one.expect("run ready")
    one.signal(number)
    one.expect("run stop")
    one.signal(number)
    one.expect("run abort", "run cancelled")
    code, output, errors = one.end()
    assert code == -signal.SIGINT
    assert output == []
    assert errors.startswith(FINISHING + AGAIN + SAVED)


def test_two_different_signals_are_two_signals(child):
    one = child("start(work())")
    one.expect("run ready")
    one.signal(signal.SIGTERM)
    one.expect("run stop")
    one.signal(signal.SIGINT)
    one.expect("run abort", "run cancelled")
    assert one.end()[0] == -signal.SIGINT


def test_the_end_of_the_grace_time_stops_it(child, how, number):
    one = child("start(work(grace=0.02))", how)
    one.expect("run ready")
    one.signal(number)
    one.expect("run stop", "run abort", "run cancelled")
    code, output, errors = one.end()
    assert code == -signal.SIGINT
    assert output == []
    assert errors.startswith(
        "interrupted: finishing 1 running item, at most 0.02 s; again to stop at once\n"
        "the grace time is over: stopping what is still running\n" + SAVED
    )


def test_the_third_signal_ends_even_a_blocked_loop(child, how, number):
    one = child(
        """
def block():
    say("blocked")
    try:
        while os.read(0, 100):
            say("still blocked")
    except KeyboardInterrupt:
        say("KeyboardInterrupt")
        raise

async def main():
    asyncio.get_running_loop().call_soon(block)
    await work()

start(main())
""",
        how,
    )
    one.expect("run ready", "blocked")
    for _ in range(2):
        one.signal(number)
        one.go_on()
        one.expect("still blocked")
    one.signal(number)
    one.expect("KeyboardInterrupt")
    code, output, _ = one.end()
    assert code == -signal.SIGINT
    assert "run finished" not in output


def test_who_waits_for_ever_after_the_abort_is_cancelled_too(child):
    one = child(
        """
interrupt.SECONDS_TO_LEAVE = 0.02

async def main():
    with graceful(lambda: None, lambda: say("abort"), lambda: "", 60.0):
        say("ready")
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            say("cancelled")
            raise

start(main())
"""
    )
    one.expect("ready")
    one.signal(signal.SIGINT)
    one.errors("interrupted: finishing what is running, at most 60 s; again to stop at once\n")
    one.signal(signal.SIGINT)
    one.expect("abort", "cancelled")
    code, _, errors = one.end()
    assert code == -signal.SIGINT
    assert errors.startswith(AGAIN + "Traceback")


def test_concurrent_and_nested_runs_stop_together_and_the_last_hands_on(child, how, number):
    one = child(
        """
async def outer():
    async def item():
        await work("inner", item=inner.wait, saved="")
        say("the item goes on after its inner run")
        await line()
    await work("outer", item=item)

async def main():
    global inner, other
    inner, other = asyncio.Event(), asyncio.Event()
    async def release():
        await line()
        other.set()
        await line()
        inner.set()
    await asyncio.gather(outer(), work("other", item=other.wait, count=2, saved="9 done"), release())
    await asyncio.sleep(0)
    say("not reached")

start(main())
""",
        how,
    )
    one.expect("outer ready", "other ready", "inner ready")
    one.signal(number)
    one.expect("outer stop", "other stop", "inner stop")
    one.errors("interrupted: finishing 4 running items, at most 60 s; again to stop at once\n")
    one.go_on()
    one.expect("other finished")
    one.errors("9 done\n")
    one.go_on()
    one.expect("inner finished", "the item goes on after its inner run")
    one.go_on()
    one.expect("outer finished")
    code, output, errors = one.end()
    assert code == -signal.SIGINT
    assert output == []
    assert errors.startswith(SAVED)


def test_a_run_that_begins_during_an_interruption_is_stopped_before_it_begins(child):
    one = child(
        """
async def main():
    late = asyncio.Event()
    async def later():
        await late.wait()
        await work("late", item=lambda: asyncio.sleep(0))
    async def release():
        await line()
        late.set()
        await line()
    await asyncio.gather(work(item=release), later())

start(main())
"""
    )
    one.expect("run ready")
    one.signal(signal.SIGINT)
    one.expect("run stop")
    one.go_on()
    one.expect("late stop", "late ready", "late finished")
    one.go_on()
    one.expect("run finished")
    assert one.end()[0] == -signal.SIGINT


def test_a_run_in_another_thread_goes_on(child):
    one = child(
        """
ready, end = threading.Event(), threading.Event()

async def other():
    with graceful(lambda: say("other stop"), lambda: say("other abort"), lambda: "other saved", 0.0):
        ready.set()
        await asyncio.to_thread(end.wait)
        say("other finished")

thread = threading.Thread(target=start, args=(other(),))
thread.start()
ready.wait()
try:
    start(work())
finally:
    end.set()
    thread.join()
""",
        "runner",
    )
    one.expect("run ready")
    one.signal(signal.SIGINT)
    one.expect("run stop")
    one.go_on()
    one.expect("run finished", "other finished")
    code, output, errors = one.end()
    assert code == -signal.SIGINT
    assert output == []
    assert errors.startswith(FINISHING + SAVED + "Traceback")


def test_a_signal_the_program_handles_is_left_to_it(child):
    one = child(
        """
def own(*_):
    say("own handler")

async def main():
    signal.signal(signal.SIGTERM, own)
    with graceful(lambda: say("stop"), lambda: None, lambda: "", 60.0):
        say(handlers())
        await line()

start(main())
say(handlers())
"""
    )
    one.expect("['_on_signal', 'own']")
    one.signal(signal.SIGTERM)
    one.expect("own handler")
    one.go_on()
    assert one.end() == (0, ["['default_int_handler', 'own']"], "")


def test_sigterm_ends_a_program_that_ignores_ctrl_c(child, how):
    one = child(
        """
signal.signal(signal.SIGINT, signal.SIG_IGN)
start(work())
""",
        how,
    )
    one.expect("run ready")
    one.signal(signal.SIGINT)
    one.signal(signal.SIGTERM)
    one.expect("run stop")
    one.go_on()
    one.expect("run finished")
    assert one.end()[0] == -signal.SIGINT


def test_a_loop_handler_of_ctrl_c_keeps_it(child):
    one = child(
        """
async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, say, "own handler")
    await work()

start(main())
"""
    )
    one.expect("run ready")
    one.signal(signal.SIGINT)
    one.expect("own handler")
    one.go_on()
    assert one.end() == (0, ["run finished"], "")


def test_a_forked_child_has_the_handlers_that_were_there_before(child):
    one = child(
        """
async def main():
    with graceful(lambda: say("stop"), lambda: None, lambda: "", 60.0):
        pid = os.fork()
        if pid == 0:
            say(handlers())
            os._exit(0)
        os.waitpid(pid, 0)
        say(handlers())

start(main())
""",
        "by hand",
    )
    assert one.end() == (
        0,
        ["['default_int_handler', 'Handlers']", "['_on_signal', '_on_signal']"],
        "",
    )


def test_a_signal_while_the_loop_stands_still_does_what_it_always_does(child):
    one = child(
        """
async def main():
    with graceful(lambda: say("stop"), lambda: None, lambda: "", 60.0):
        await asyncio.get_running_loop().create_future()

loop = make()
task = loop.create_task(main())
loop.run_until_complete(asyncio.sleep(0))
say(handlers())
try:
    say("standing still")
    sys.stdin.read()
except KeyboardInterrupt:
    say("KeyboardInterrupt")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
    say(handlers())
"""
    )
    one.expect("['_on_signal', '_on_signal']", "standing still")
    one.signal(signal.SIGINT)
    assert one.end() == (0, ["KeyboardInterrupt", "['default_int_handler', 'Handlers']"], "")


def test_a_broken_stderr_changes_nothing(child, how):
    one = child("start(work())", how)
    one.expect("run ready")
    one.process.stderr.close()
    one.signal(signal.SIGINT)
    one.expect("run stop")
    one.go_on()
    one.expect("run finished")
    assert one.process.wait() == -signal.SIGINT


def test_after_an_interruption_the_next_run_begins_anew(child):
    one = child(
        """
for name in ("first", "second"):
    with contextlib.suppress(KeyboardInterrupt):
        start(work(name))
    say(handlers())
"""
    )
    for name in ("first", "second"):
        one.expect(f"{name} ready")
        one.signal(signal.SIGINT)
        one.expect(f"{name} stop")
        one.go_on()
        one.expect(f"{name} finished", "['default_int_handler', 'Handlers']")
    assert one.end() == (0, [], 2 * (FINISHING + SAVED))


HANDLED = (signal.SIGINT, signal.SIGTERM)


def current():
    return [signal.getsignal(number) for number in HANDLED]


@pytest.fixture
def standard():
    """Handlers as Python sets them, whoever started the tests."""
    before = current()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield current()
    for number, handler in zip(HANDLED, before, strict=True):
        signal.signal(number, handler)


def nothing():
    return graceful(lambda: None, lambda: None, str, 10.0)


async def test_handlers_are_there_from_the_first_run_to_the_last(loop, standard):
    with nothing():
        ours = current()
        assert ours != standard
        with nothing():
            assert current() == ours
        assert current() == ours
    assert current() == standard


def test_the_handler_of_a_runner_is_put_back(loop_factory, standard):
    async def main():
        before = current()
        assert isinstance(before[0], functools.partial)
        with nothing():
            assert current()[0] is not before[0]
        assert current() == before

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert current() == standard


def test_a_run_that_outlives_its_runner_leaves_pythons_own_handler(loop_factory, standard):
    async def background():
        with nothing():
            await asyncio.get_running_loop().create_future()

    async def main(tasks):
        tasks.append(asyncio.ensure_future(background()))
        await asyncio.sleep(0)

    tasks = []
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main(tasks))
        assert not tasks[0].done()
    assert tasks[0].cancelled()
    assert current() == standard


async def test_handlers_somebody_else_has_set_meanwhile_stay(loop, standard):
    def own(*_):
        pass

    with nothing():
        signal.signal(signal.SIGINT, own)
    assert current() == [own, signal.SIG_DFL]


async def test_handlers_are_put_back_after_an_error(loop, standard):
    with pytest.raises(LookupError), nothing():
        raise LookupError
    assert current() == standard


def test_a_run_in_another_thread_touches_no_handler(loop_factory, standard):
    seen = []

    async def main():
        with nothing():
            seen.append(current())

    def run():
        loop = loop_factory()
        loop.run_until_complete(main())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [standard]


def test_no_timer_is_left_behind(virtual_loop, standard):
    async def main():
        stopped = asyncio.Event()
        with graceful(stopped.set, lambda: pytest.fail("aborted"), str, 10.0):
            signal.raise_signal(signal.SIGINT)
            await stopped.wait()

    with pytest.raises(KeyboardInterrupt):
        virtual_loop.run_until_complete(main())
    virtual_loop.run_until_complete(asyncio.sleep(100))
