"""Where `unwait fetch` writes its JSON Lines: a file, or stdout."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from unwait.cli.fetch_options import bad
from unwait.web.lines import write_line


class Output:
    """A file, or stdout for None; as it was until `begin`, then empty and written line by line, each at once.

    `option` is the one that names it.
    """

    def __init__(self, path: Path | None, option: str) -> None:
        self.path = path
        self._option = option
        self._descriptor = -1

    def open(self) -> None:
        """Make sure that it can be written."""
        if self.path is None:
            if sys.stdout is None:
                raise bad("stdout is closed", self._option)
            sys.stdout.flush()
            self._descriptor = sys.stdout.fileno()
            return
        try:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise bad(f"cannot write {self.path}: {error.strerror}", self._option) from None

    def begin(self) -> None:
        """Take away what an earlier run wrote, for it is written again from the journal."""
        if self.path is not None and stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            os.ftruncate(self._descriptor, 0)

    async def write(self, line: bytes) -> None:
        """Write a line, which ends in a line break. Raises OSError."""
        await write_line(self._descriptor, line)

    def close(self) -> None:
        """The end."""
        if self.path is not None and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
