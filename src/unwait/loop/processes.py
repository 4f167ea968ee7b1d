"""Child processes: started by `subprocess.Popen`, their end reported by a pidfd.

`pidfd_open(2)` gives a descriptor that becomes readable when the process ends. So there is no SIGCHLD handler to share
with others, no thread a child, and no `waitpid` for children that are not ours.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from asyncio.base_subprocess import BaseSubprocessTransport
from asyncio.log import logger
from collections.abc import Callable
from typing import TYPE_CHECKING, Any


class SubprocessTransport(BaseSubprocessTransport):
    """One child process and its pipes."""

    if TYPE_CHECKING:  # from `_start` on, neither is None
        _proc: subprocess.Popen[Any]

        def get_pid(self) -> int: ...
        def _check_proc(self) -> None: ...

    def _start(
        self,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        **options: Any,
    ) -> None:
        self._proc = subprocess.Popen(
            args,
            shell=shell,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            universal_newlines=False,
            bufsize=bufsize,
            **options,
        )

    def send_signal(self, signal: int) -> None:
        self._check_proc()
        # By Popen, which knows of a child that has been reaped: its number may be another process's by now.
        self._proc.send_signal(signal)


class Processes(asyncio.BaseEventLoop):
    """The part of the loop that runs child processes."""

    if TYPE_CHECKING:

        def _add_reader(self, fd: int, callback: Callable[..., object], *args: Any) -> asyncio.Handle: ...
        def _remove_reader(self, fd: int) -> bool: ...

    def __init__(self) -> None:
        super().__init__()
        self._pidfds: set[int] = set()

    async def _make_subprocess_transport(
        self,
        protocol: asyncio.SubprocessProtocol,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: dict[str, Any] | None = None,
        **options: Any,
    ) -> SubprocessTransport:
        waiter = self.create_future()
        transport = SubprocessTransport(
            self, protocol, args, shell, stdin, stdout, stderr, bufsize, waiter=waiter, extra=extra, **options
        )
        try:
            pidfd = os.pidfd_open(transport.get_pid())
        except OSError:
            transport.close()  # which kills the child: nobody would notice its end
            raise
        self._pidfds.add(pidfd)
        self._add_reader(pidfd, self._reap, pidfd, transport)
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            await transport._wait()
            raise
        return transport

    def _reap(self, pidfd: int, transport: SubprocessTransport) -> None:
        """Collect the exit status of a child that has ended."""
        self._forget_pidfd(pidfd)
        process = transport._proc
        pid = transport.get_pid()
        returncode = process.returncode  # set if somebody polled the Popen object before us
        if returncode is None:
            try:
                returncode = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            except ChildProcessError:
                returncode = 255
                logger.warning(
                    "child process %d exit status already read: will report returncode %d", pid, returncode
                )
        transport._process_exited(returncode)

    def _forget_pidfd(self, pidfd: int) -> None:
        self._remove_reader(pidfd)
        self._pidfds.discard(pidfd)
        os.close(pidfd)

    def _close_processes(self) -> None:
        """Close what watches the children that are still running; they are left alone."""
        for pidfd in list(self._pidfds):
            self._forget_pidfd(pidfd)
