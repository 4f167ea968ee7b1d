"""Child processes: streams, signals, exit codes, cancelling, many at once; no threads, no SIGCHLD handler."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from .support import SINCE_312, SINCE_313, turns

PIPE = subprocess.PIPE
CAT = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"


async def python(code, *arguments, **options):
    return await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", code, *arguments, **options)


async def output_of(code, **options):
    process = await python(code, stdout=PIPE, **options)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output


class Recorder(asyncio.SubprocessProtocol):
    def __init__(self):
        self.calls = []
        self.output = {1: b"", 2: b""}
        self.lost = asyncio.get_running_loop().create_future()
        self.reason = None

    def connection_made(self, transport):
        self.transport = transport
        self.calls.append("made")

    def pipe_data_received(self, fd, data):
        self.output[fd] += data

    def pipe_connection_lost(self, fd, exc):
        self.calls.append(f"pipe {fd} lost")

    def process_exited(self):
        self.calls.append("exited")

    def connection_lost(self, exc):
        self.calls.append("lost")
        self.reason = exc
        self.lost.set_result(None)


async def test_the_exit_code_is_told(loop):
    for code in (0, 1, 7, 255):
        process = await python(f"raise SystemExit({code})")
        assert process.returncode is None
        assert await process.wait() == code
        assert process.returncode == code
        assert await process.wait() == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGSEGV])
async def test_death_by_a_signal_is_a_negative_code(loop, number):
    process = await python(f"import os; os.kill(os.getpid(), {int(number)})")
    assert await process.wait() == -number


async def test_communicate(loop):
    process = await python(CAT, stdin=PIPE, stdout=PIPE)
    assert await process.communicate(b"hello") == (b"hello", None)
    assert process.returncode == 0


async def test_both_outputs_are_kept_apart(loop):
    code = "import sys; print('out'); print('err', file=sys.stderr)"
    process = await python(code, stdout=PIPE, stderr=PIPE)
    assert await process.communicate() == (b"out\n", b"err\n")


async def test_stderr_joins_stdout(loop):
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr)"
    process = await python(code, stdout=PIPE, stderr=subprocess.STDOUT)
    assert await process.communicate() == (b"out\nerr\n", None)


async def test_devnull(loop):
    process = await python(
        "print(input('x'))", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert await process.wait() == 1
    assert (process.stdin, process.stdout, process.stderr) == (None, None, None)


async def test_streams_are_inherited_by_default(loop, capfd):
    process = await python("print('straight through')")
    assert await process.wait() == 0
    assert capfd.readouterr().out == "straight through\n"


async def test_a_file_may_be_a_stream(loop, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"content")
    with source.open("rb") as stdin, target.open("wb") as stdout:
        process = await python(CAT, stdin=stdin, stdout=stdout)
        assert await process.wait() == 0
    assert target.read_bytes() == b"content"


async def test_large_output_and_input(loop):
    payload = os.urandom(1 << 20) * 4
    process = await python(CAT, stdin=PIPE, stdout=PIPE)
    output, _ = await process.communicate(payload)
    assert output == payload


async def test_a_conversation_line_by_line(loop):
    code = "import sys\nfor line in sys.stdin: print(line.strip().upper(), flush=True)"
    process = await python(code, stdin=PIPE, stdout=PIPE)
    for number in range(50):
        process.stdin.write(b"line %d\n" % number)
        await process.stdin.drain()
        assert await process.stdout.readline() == b"LINE %d\n" % number
    process.stdin.close()
    assert await process.wait() == 0


async def test_a_child_that_does_not_read_its_input(loop):
    process = await python("pass", stdin=PIPE)
    assert await process.communicate(b"x" * 1_000_000) == (None, None)
    assert process.returncode == 0


async def test_shell(loop):
    process = await asyncio.create_subprocess_shell("echo $((6*7)); exit 3", stdout=PIPE)
    assert await process.communicate() == (b"42\n", None)
    assert process.returncode == 3


async def test_arguments_arrive(loop):
    process = await python("import sys; print(sys.argv[1:])", "a b", "", "ü", stdout=PIPE)
    output, _ = await process.communicate()
    assert output.decode() == "['a b', '', 'ü']\n"


async def test_bytes_and_paths_are_arguments(loop, tmp_path):
    process = await asyncio.create_subprocess_exec(
        pathlib.Path(sys.executable), b"-c", b"print('bytes')", stdout=PIPE
    )
    assert await process.communicate() == (b"bytes\n", None)


# Ending a child


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda process: process.terminate(), -signal.SIGTERM),
        (lambda process: process.kill(), -signal.SIGKILL),
        (lambda process: process.send_signal(signal.SIGHUP), -signal.SIGHUP),
    ],
    ids=["terminate", "kill", "send_signal"],
)
async def test_ending_a_child(loop, end, code):
    process = await python("import time; time.sleep(60)")
    end(process)
    assert await process.wait() == code


async def test_signalling_a_child_that_is_gone(loop):
    process = await python("pass")
    await process.wait()
    await turns()
    with pytest.raises(ProcessLookupError):
        process.kill()
    with pytest.raises(ProcessLookupError):
        process.terminate()
    with pytest.raises(ProcessLookupError):
        process.send_signal(signal.SIGHUP)


@pytest.mark.asyncio_flawed(True, "kill() may take the exit code from who waits for it")
@pytest.mark.parametrize(
    "end",
    [lambda process: process.kill(), lambda process: process._transport.close()],
    ids=["kill", "close"],
)
async def test_a_child_that_has_ended_when_it_is_killed_keeps_its_exit_code(loop, end):
    process = await python("raise SystemExit(7)")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # and the loop has had no turn to see it
    end(process)
    assert await process.wait() == 7


@pytest.mark.asyncio_flawed(SINCE_313, "signals the process id of a child that it has reaped")
async def test_who_has_the_number_of_a_reaped_child_gets_no_signal(loop, monkeypatch):
    transport, protocol = await loop.subprocess_shell(Recorder, "exec 3<&0; cat <&3 & exit 7")
    while "exited" not in protocol.calls:
        await asyncio.sleep(0.005)
    # Its transport stays as long as there is somebody at the other end of a pipe.
    signalled = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda *call: signalled.append(call))
        transport.kill()
        transport.terminate()
        transport.send_signal(signal.SIGHUP)
    assert not signalled
    transport.get_pipe_transport(0).close()
    await protocol.lost
    assert transport.get_returncode() == 7
    transport.close()


async def test_a_cancelled_wait_leaves_the_child(loop):
    process = await python("import sys; sys.stdin.read()", stdin=PIPE)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(), 0.02)
    assert process.returncode is None
    process.stdin.close()
    assert await process.wait() == 0


async def test_a_cancelled_communicate(loop):
    process = await python("import time; print('x' * 100000, flush=True); time.sleep(60)", stdout=PIPE)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.communicate(), 0.05)
    process.kill()
    await process.communicate()
    assert process.returncode == -signal.SIGKILL


def children():
    """This process's children, by process id: those of other tests' servers as well."""
    return set(pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


async def test_a_cancelled_start_leaves_no_child(loop):
    before = children()
    starting = loop.create_task(python("import time; time.sleep(60)", stdin=PIPE, stdout=PIPE))
    await turns(2)
    starting.cancel()
    try:
        process = await starting
    except asyncio.CancelledError:
        pass
    else:
        process.kill()
        await process.communicate()
    await asyncio.sleep(0.05)
    assert children() == before


async def test_several_waiters_are_all_told(loop):
    process = await python("import sys; sys.stdin.read()", stdin=PIPE)
    waiting = [loop.create_task(process.wait()) for _ in range(5)]
    await turns()
    process.stdin.close()
    assert await asyncio.gather(*waiting) == [0] * 5


async def test_many_at_once(loop):
    async def one(number):
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", f"echo {number}; exit {number}", stdout=PIPE
        )
        output, _ = await process.communicate()
        return output, process.returncode

    results = await asyncio.gather(*(one(number) for number in range(30)))
    assert results == [(b"%d\n" % number, number) for number in range(30)]


# What goes through to Popen


async def test_cwd_and_env(loop, tmp_path):
    code = "import os; print(os.getcwd(), os.environ['UNWAIT_TEST'])"
    output = await output_of(code, cwd=tmp_path, env={**os.environ, "UNWAIT_TEST": "set"})
    assert output.decode() == f"{os.path.realpath(tmp_path)} set\n"


async def test_pass_fds(loop):
    reading, writing = os.pipe()
    process = await python(f"import os; os.write({writing}, b'passed')", pass_fds=[writing])
    assert await process.wait() == 0
    os.close(writing)
    assert os.read(reading, 100) == b"passed"
    os.close(reading)


async def test_no_descriptor_of_ours_is_inherited(loop):
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    code = "import os; print(sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:-1])"
    assert await output_of(code, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == b"[0, 1, 2]\n"
    assert await output_of(code, stdin=subprocess.DEVNULL, close_fds=False) is not None
    server.close()
    await server.wait_closed()


async def test_preexec_fn(loop):
    code = "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"
    base = int(await output_of(code))
    assert int(await output_of(code, preexec_fn=lambda: os.nice(3))) == min(base + 3, 19)


async def test_process_group_and_session(loop):
    code = "import os; print(os.getpgid(0) == os.getpid())"
    assert await output_of(code, process_group=0) == b"True\n"
    assert await output_of(code, start_new_session=True) == b"True\n"
    assert await output_of(code) == b"False\n"


async def test_a_program_that_is_missing(loop):
    with pytest.raises(FileNotFoundError):
        await asyncio.create_subprocess_exec("/no/such/program", stdin=PIPE, stdout=PIPE)


async def test_a_program_that_may_not_run(loop, tmp_path):
    path = tmp_path / "program"
    path.write_text("not executable")
    with pytest.raises(PermissionError):
        await asyncio.create_subprocess_exec(str(path))


async def test_a_directory_that_is_missing(loop, tmp_path):
    with pytest.raises(FileNotFoundError):
        await python("pass", cwd=tmp_path / "missing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"universal_newlines": True}, "universal_newlines must be False"),
        ({"text": True}, "text must be False"),
        ({"encoding": "utf-8"}, "encoding must be None"),
        ({"errors": "strict"}, "errors must be None"),
        ({"bufsize": 4096}, "bufsize must be 0"),
        ({"shell": True}, "shell must be False"),
    ],
)
async def test_text_modes_are_refused(loop, options, message):
    with pytest.raises(ValueError, match=message):
        await loop.subprocess_exec(asyncio.SubprocessProtocol, sys.executable, "-c", "pass", **options)


async def test_wrong_commands_are_refused(loop):
    with pytest.raises(TypeError):
        await loop.subprocess_exec(asyncio.SubprocessProtocol, 7)
    with pytest.raises(ValueError, match="cmd must be a string"):
        await loop.subprocess_shell(asyncio.SubprocessProtocol, ["list"])
    with pytest.raises(ValueError, match="shell must be True"):
        await loop.subprocess_shell(asyncio.SubprocessProtocol, "true", shell=False)


# The transport


async def test_protocol_calls_come_in_order(loop):
    transport, protocol = await loop.subprocess_exec(
        Recorder, sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr)"
    )
    await protocol.lost
    assert protocol.output == {1: b"out\n", 2: b"err\n"}
    assert protocol.calls[0] == "made"
    assert protocol.calls[-1] == "lost"
    assert sorted(protocol.calls[1:-1]) == ["exited", "pipe 0 lost", "pipe 1 lost", "pipe 2 lost"]
    assert protocol.reason is None
    assert transport.get_returncode() == 0
    transport.close()


async def test_what_the_transport_tells(loop):
    transport, protocol = await loop.subprocess_exec(Recorder, sys.executable, "-c", CAT)
    assert isinstance(transport, asyncio.SubprocessTransport)
    assert transport.get_pid() == transport.get_extra_info("subprocess").pid
    assert transport.get_returncode() is None
    assert f"pid={transport.get_pid()}" in repr(transport)
    assert transport.get_protocol() is protocol
    assert isinstance(transport.get_pipe_transport(0), asyncio.WriteTransport)
    assert isinstance(transport.get_pipe_transport(1), asyncio.ReadTransport)
    assert transport.get_pipe_transport(5) is None
    transport.get_pipe_transport(0).write(b"in")
    transport.get_pipe_transport(0).close()
    await protocol.lost
    assert protocol.output[1] == b"in"
    transport.close()


async def test_closing_the_transport_kills_the_child(loop):
    transport, protocol = await loop.subprocess_exec(
        Recorder, sys.executable, "-c", "import time; time.sleep(60)"
    )
    assert not transport.is_closing()
    transport.close()
    assert transport.is_closing()
    await protocol.lost
    assert transport.get_returncode() == -signal.SIGKILL
    transport.close()


async def test_pipes_that_outlive_the_child(loop):
    """A grandchild holds the output open: the child's exit is told at once, the end of the pipe later."""
    transport, protocol = await loop.subprocess_shell(
        Recorder, "(sleep 0.3; echo late) & echo early", stdin=None
    )
    while "exited" not in protocol.calls:
        await asyncio.sleep(0.005)
    assert protocol.output[1] == b"early\n"
    await protocol.lost
    assert protocol.output[1] == b"early\nlate\n"
    transport.close()


async def test_the_loop_reaps_its_children(loop):
    before = children()
    for _ in range(5):
        process = await python("pass")
        await process.wait()
    assert children() == before


async def test_other_peoples_children_are_left_alone(loop):
    theirs = subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(5)"])
    process = await python("pass")
    await process.wait()
    assert await loop.run_in_executor(None, theirs.wait) == 5


async def test_no_thread_is_started(loop, loop_kind):
    if loop_kind == "asyncio" and not SINCE_312:
        pytest.skip("asyncio before Python 3.12 waits for children in threads")
    before = threading.enumerate()
    process = await python("import sys; sys.stdin.read()", stdin=PIPE)
    assert threading.enumerate() == before
    process.stdin.close()
    await process.wait()
    assert threading.enumerate() == before


async def test_no_sigchld_handler_is_installed(loop):
    before = signal.getsignal(signal.SIGCHLD)
    process = await python("pass")
    assert signal.getsignal(signal.SIGCHLD) == before
    await process.wait()
    assert signal.getsignal(signal.SIGCHLD) == before


def test_children_are_started_in_any_thread(loop_factory, loop_kind):
    results = []

    def work():
        loop = loop_factory()

        async def main():
            process = await python("raise SystemExit(4)")
            return await process.wait()

        results.append(loop.run_until_complete(main()))
        loop.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [4] * 3
