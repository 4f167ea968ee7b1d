"""A file that appears when it is complete."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from unwait.web.errors import NotSaved

_SHOWN = 50  # characters of the name: with all of it, the hidden name could be too long where the name is not


class PartFile:
    """A file that gets its name when it is complete; until then it is hidden, and removed if it never is.

    A context manager; leaving it with an exception removes the file. Raises `NotSaved` where the system refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # A name of its own: the same file may be on its way twice.
        self._part = path.with_name(f".{path.name[:_SHOWN]}.{os.urandom(6).hex()}.part")

    def __enter__(self) -> PartFile:
        # A link that lies in the way must not lead out of the directory.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._file = open(os.open(self._part, flags, 0o666), "wb", buffering=0)
        except OSError as error:
            raise _not_saved(error) from None
        return self

    def write(self, piece: bytes) -> None:
        """Append to the file."""
        # Straight to the page cache: a thread for each piece would cost more than it spares.
        view = memoryview(piece)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise _not_saved(error) from None

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        try:
            self._file.close()
            if kind is None:
                os.replace(self._part, self._path)
                return
        except OSError as error:
            self._part.unlink(missing_ok=True)
            raise _not_saved(error) from None
        self._part.unlink(missing_ok=True)


def _not_saved(error: OSError) -> NotSaved:
    return NotSaved(f"cannot save the body: {error.strerror}", hint="look at the disk and the directory")
