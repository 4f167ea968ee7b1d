"""The journal: a file that remembers each item's result, so that no finished call is made twice."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Literal

from unwait.flow.codec import Codec, codec_named
from unwait.flow.keys import derive_key, type_name

if TYPE_CHECKING:
    from unwait.flow.journal_session import Session

# Between an item's key and a stage's name, where a pipeline saves what a stage made. No key has it.
STAGE = "\x1f"


class JournalError(Exception):
    """The journal cannot be used, or not any longer; the message names the file and what to do."""


class JournalMismatch(JournalError):
    """The file belongs to something else: another function, version, codec or format, or it is no journal."""


class JournalBusy(JournalError):
    """Another run is writing the journal."""


@dataclass(slots=True, frozen=True)
class Stored:
    """What the journal knows of an item: `value` if `ok`, else the text of the `error` of its last attempt.

    `this_run` tells that the item was stored or reused in the run that asks, and not in an earlier one.
    """

    ok: bool
    value: Any
    error: str | None
    attempts: int
    elapsed: float
    this_run: bool


class Journal:
    """Where a run stores its results, and a later run of the same function finds them.

    `path` is a SQLite file, made if there is none; SQLite puts two more beside it (`-wal`, `-shm`) while
    a run writes. `version` is any text: change it when results of an older version of the function must
    not be reused, and the file is refused. `codec` is "json" (the default), "pickle" (almost any value, but
    only for files that nobody else can write: reading runs code), or an object like `unwait.flow.codec.Codec`.
    `valid` tells whether an earlier run's result is still good; for one that is not the call is made again.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        version: str = "",
        codec: Literal["json", "pickle"] | Codec = "json",
        valid: Callable[[Any], bool] | None = None,
    ) -> None:
        if not isinstance(version, str):
            raise TypeError(f"version is a str, not {version!r}")
        self.path = os.fspath(path)
        if not isinstance(self.path, str) or not self.path:
            raise TypeError(f"the path of a journal is a str or a path, and not empty: {path!r}")
        self.version = version
        self.codec = codec_named(codec)
        self.valid = valid

    def __repr__(self) -> str:
        return f"Journal({self.path!r}, version={self.version!r}, codec={self.codec.name!r})"

    def session(
        self,
        function: str,
        committed: Callable[[list[Any]], None],
        broken: Callable[[JournalError], None],
    ) -> Session:
        """Open the file for one run of the function of this name; to be called in the running loop's thread.

        `committed` is called in the loop with the tags of what has been stored, after each commit. `broken`
        is called there, once, if storing fails; what was not reported to `committed` until then is not stored.

        Raises JournalMismatch for a file that belongs to something else, JournalBusy if another run is
        writing it, JournalError if it cannot be opened.
        """
        # Here and not above: it brings sqlite3, which nobody needs who keeps no journal.
        from unwait.flow.journal_session import Session

        return Session(self, function, committed, broken)


def function_name(function: Callable[..., Any]) -> str:
    """The name under which a journal knows a function: its module's and its own, the same in every process.

    The module of a script is the name of its file. A lambda is also known by its code, and a partial by its arguments
    as far as a key can be derived from them; an object that can be called by its class, and a method by its function:
    what they hold is for the journal's `version` to tell.
    """
    given: list[Any] = []
    while isinstance(function, functools.partial):
        if function.args or function.keywords:
            given.append((function.args, function.keywords))
        function = function.func
    named: Any = function if hasattr(function, "__qualname__") else type(function)
    # A method of a built-in type has no module.
    name = str(named.__qualname__) if named.__module__ is None else type_name(named)
    if isinstance(function, FunctionType) and function.__name__ == "<lambda>":
        name += f" {hashlib.sha256(_code(function.__code__).encode()).hexdigest()[:12]}"
    for arguments in given:
        with suppress(TypeError):
            name += f" {derive_key(arguments)}"
    return name


def _code(code: CodeType) -> str:
    """What a code object does, without where it stands."""
    return repr((code.co_code, code.co_names, code.co_freevars, [_constant(each) for each in code.co_consts]))


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _code(value)
    # The order of a set is another one in each process.
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
