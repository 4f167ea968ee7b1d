"""Files of directories: found in sorted order, whatever else is there. All of this blocks and runs in threads.

What is left out: what ignore files and the selection say; hidden names; directories that hold what tools made
(node_modules, __pycache__, virtual environments, caches with a CACHEDIR.TAG); what is no file. A link to a file is the
file; a link to a directory is not followed, so that there are no loops. Ignore files above the directory that was
named are not read: what is named is wanted.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Generator, Iterator
from heapq import merge
from typing import BinaryIO, NamedTuple

from unwait.documents.ignore import Pattern, Patterns, Selection, lines_of
from unwait.documents.model import SourceFailed
from unwait.documents.names import shown

# The later one decides.
IGNORE_FILES = (".gitignore", ".unwaitignore")
_LARGEST_IGNORE_FILE = 1 << 20
_MADE = frozenset(("node_modules", "__pycache__", "__pypackages__", "site-packages"))
_MADE_MARKS = frozenset(("pyvenv.cfg", "CACHEDIR.TAG"))
_TELLING = _MADE_MARKS.union(IGNORE_FILES)
_RUN = 4096  # names that are sorted at once
LINES = (".jsonl", ".ndjson")
_MAY_BE_LINES = frozenset(("", ".json", ".jl", ".jsonlines", ".txt", ".log"))
_SNIFFED = 1 << 16
_WILD = re.compile(r"[*?\[]")


class Found(NamedTuple):
    """A file, or what could not be read."""

    uri: str
    path: str
    lines: bool = False
    problem: SourceFailed | None = None


class _Directory(NamedTuple):
    path: str
    relative: bytes  # to the root, with a slash at its end unless it is empty
    names: Iterator[str]
    ignores: tuple[
        tuple[int, Patterns], ...
    ]  # with the length of the path they are relative to; the last decides
    inside: bool  # whether the pattern has matched a directory above


class Walk:
    """The files of a directory, or those that a pattern matches (`docs/**/*.md`); iterable once.

    `complete` says afterwards whether all of it could be read. `below` is a directory in it to begin with.
    """

    def __init__(
        self, root: str, selection: Selection, *, pattern: str | None = None, below: str | None = None
    ) -> None:
        self.complete = True
        self._root = root
        self._selection = selection
        self._pattern: Pattern | None = None
        self._levels = 0
        self._hidden = False
        self._below = below
        if pattern is not None:
            self._pattern = Pattern(b"/" + os.fsencode(pattern))
            # How deep it reaches; what it matches there is taken with all that is in it.
            self._levels = 1 << 30 if "**" in pattern else pattern.count("/") + 1
            self._hidden = pattern.startswith(".") or "/." in pattern

    def __iter__(self) -> Generator[Found | None, None, None]:
        stack: list[_Directory] = []
        yield from self._enter(stack, self._root, b"", (), self._pattern is None)
        if self._below is not None and stack:
            yield from self._descend(stack, self._below)
        while stack:
            directory = stack[-1]
            marked = next(directory.names, None)
            if marked is None:
                stack.pop()
                continue
            name = marked.rstrip("/\0")
            if name.startswith(".") and not self._hidden:
                continue
            path, relative = os.path.join(directory.path, name), directory.relative + os.fsencode(name)
            if marked.endswith("/"):
                yield from self._subdirectory(stack, directory, name, path, relative)
            elif (
                self._wanted(directory, relative)
                and (found := self._file(path, marked.endswith("\0"))) is not None
            ):
                yield found

    def _subdirectory(
        self, stack: list[_Directory], directory: _Directory, name: str, path: str, relative: bytes
    ) -> Iterator[Found | None]:
        if name in _MADE or name == ".git" or self._left_out(directory, relative, True):
            return
        inside = directory.inside
        if self._pattern is not None and not inside:
            inside = self._pattern.matches(relative, os.fsencode(name), True)
            if not inside and relative.count(b"/") + 1 >= self._levels:
                return
        yield from self._enter(stack, path, relative + b"/", directory.ignores, inside)

    def _enter(
        self,
        stack: list[_Directory],
        path: str,
        relative: bytes,
        ignores: tuple[tuple[int, Patterns], ...],
        inside: bool,
    ) -> Iterator[Found | None]:
        """Put the directory on the stack; yields what is wrong with it, and None."""
        yield None
        try:
            names, telling = _names(path)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and relative:
                return  # removed since
            self.complete = False
            yield Found(shown(path), path, problem=unreadable(error))
            return
        if relative and not _MADE_MARKS.isdisjoint(telling):
            return
        for name in IGNORE_FILES:
            if name in telling:
                file = os.path.join(path, name)
                try:
                    patterns = Patterns(lines_of(read_file(file, _LARGEST_IGNORE_FILE)))
                except SourceFailed as problem:
                    self.complete = False
                    yield Found(shown(file), file, problem=problem)
                else:
                    ignores = (*ignores, (len(relative), patterns))
        stack.append(_Directory(path, relative, names, ignores, inside))

    def _descend(self, stack: list[_Directory], below: str) -> Iterator[Found | None]:
        """Leave on the stack the directory that is to be walked alone, with the ignore files above it."""
        for name in os.path.relpath(below, self._root).split(os.sep):
            directory = stack.pop()
            path, relative = os.path.join(directory.path, name), directory.relative + os.fsencode(name)
            yield from self._subdirectory(stack, directory, name, path, relative)
            if not stack:
                return

    def _left_out(self, directory: _Directory, relative: bytes, is_directory: bool) -> bool:
        for start, patterns in reversed(directory.ignores):
            ignored = patterns.ignored(relative[start:], is_directory)
            if ignored is not None:
                if ignored:
                    return True
                break
        return self._selection.excludes(relative, is_directory)

    def _wanted(self, directory: _Directory, relative: bytes) -> bool:
        if self._pattern is not None and not directory.inside:
            name = relative[relative.rfind(b"/") + 1 :]
            if not self._pattern.matches(relative, name, False):
                return False
        return self._selection.includes(relative) and not self._left_out(directory, relative, False)

    def _file(self, path: str, unsure: bool) -> Found | None:
        """The file; None for what is none. `unsure`: a link or something special."""
        if unsure:
            try:
                mode = os.stat(path).st_mode
            except OSError as error:
                return Found(shown(path), path, problem=unreadable(error))
            if not stat.S_ISREG(mode):
                return None
        return Found(shown(path), path, lines=is_lines(path))


def _names(path: str) -> tuple[Iterator[str], set[str]]:
    """The names in a directory, sorted, and those of them that say something about it.

    Those of directories end in a slash, those of what is no plain file in a NUL.
    """
    # Of a huge directory no more than these are held, and not the entries, which are several times as large. To sort
    # them all at once would stop every other thread for as long as that takes.
    runs: list[list[str]] = [[]]
    telling = set()
    with os.scandir(path) as entries:
        for entry in entries:
            plain = entry.is_file(follow_symlinks=False)
            mark = "" if plain else "/" if entry.is_dir(follow_symlinks=False) else "\0"
            if plain and entry.name in _TELLING:
                telling.add(entry.name)
            runs[-1].append(entry.name + mark)
            if len(runs[-1]) == _RUN:
                runs[-1].sort()
                runs.append([])
    runs[-1].sort()
    return (merge(*runs) if len(runs) > 1 else iter(runs[0])), telling


def split_pattern(name: str) -> tuple[str, str] | None:
    """The absolute directory and the rest of a pattern; None if there are no wildcards in it."""
    wild = _WILD.search(name)
    if wild is None:
        return None
    directory, slash, _ = name[: wild.start()].rpartition("/")
    return os.path.abspath(directory + slash), os.path.normpath(name[len(directory + slash) :])


def unreadable(error: OSError | ValueError) -> SourceFailed:
    """What is wrong with a file or a directory."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return SourceFailed("there is no such file or directory", kind="not found", gone=True)
    if isinstance(error, PermissionError):
        return SourceFailed("permission denied: it may not be read", kind="refused")
    what = getattr(error, "strerror", None) or str(error)
    return SourceFailed(f"it cannot be read: {what}", kind="broken")


def opened(path: str) -> BinaryIO:
    """The file, open for reading, without ever waiting for a writer. Raises SourceFailed."""
    try:
        # To open some devices is to do something.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise not_a_file()
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise not_a_file()
            return open(descriptor, "rb", buffering=0)
        except BaseException:
            os.close(descriptor)
            raise
    except (OSError, ValueError) as error:
        raise unreadable(error) from None


def not_a_file() -> SourceFailed:
    """For pipes, sockets and devices."""
    return SourceFailed("it is not a regular file, and is not opened", kind="not a file")


def read_file(path: str, most: int) -> bytes:
    """All of a file. Raises SourceFailed if that is more than `most` bytes, or it cannot be read."""
    with opened(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            # It may grow meanwhile, and those of /proc say that they are empty.
            pieces, left = [], most + 1 if size <= most else 0
            while left and (piece := file.read(min(left, max(size + 1, 1 << 16)))):
                pieces.append(piece)
                left -= len(piece)
        except OSError as error:
            raise unreadable(error) from None
    if not left:
        raise too_large(most)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def too_large(most: int) -> SourceFailed:
    """For what has more bytes than that."""
    return SourceFailed(f"it is larger than {most:,} bytes; a higher max_bytes allows it", kind="too large")


def is_lines(path: str) -> bool:
    """Whether the file is JSON Lines: by its suffix, or where that says nothing, by its first two lines."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in LINES:
        return True
    if suffix not in _MAY_BE_LINES:
        return False
    try:
        with opened(path) as file:
            head = file.read(_SNIFFED)
    except (SourceFailed, OSError):
        return False
    first, _, rest = head.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    if not (first.startswith(b"{") and rest.lstrip().startswith(b"{")):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False
