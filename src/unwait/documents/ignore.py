"""Which files of a directory are meant: patterns with the rules of git's ignore files.

A pattern without a slash (but at its end) matches a name at any depth; one with a slash is anchored to the directory
of its file. `*` and `?` stop at slashes, `**` between slashes does not; `!` takes back what an earlier line ignored;
a slash at the end means directories only. The last line that matches decides, and a file in a deeper directory comes
after those above. As git does, bytes are compared, and `?` is one byte.

The patterns are foreign input: each is made a regular expression that takes time in proportion to the name, where
the obvious translation, `.*` for every star, takes exponential time for some.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_SPECIAL = frozenset(b"*?[\\")
_NEVER = rb"(?!)"
_BOM = b"\xef\xbb\xbf"
_CLASSES = {
    b"alnum": rb"0-9A-Za-z",
    b"alpha": rb"A-Za-z",
    b"blank": rb" \t",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": rb"0-9",
    b"graph": rb"!-~",
    b"lower": rb"a-z",
    b"print": rb" -~",
    b"punct": rb"!-/:-@\[-`{-~",
    b"space": rb" \t\n\v\f\r",
    b"upper": rb"A-Z",
    b"xdigit": rb"0-9A-Fa-f",
}


class _Broken(ValueError):
    """A pattern that matches nothing: its bracket or its escape has no end."""


class Pattern:
    """One line: what it matches, and whether it takes back."""

    __slots__ = ("_anchored", "_directories", "_match", "negative")

    def __init__(self, line: bytes) -> None:
        self.negative = line.startswith(b"!")
        text = line[1:] if self.negative else line
        self._directories = text.endswith(b"/")
        if self._directories:
            text = text[:-1]
        self._anchored = b"/" in text
        self._match = _regex(text.removeprefix(b"/") if self._anchored else text, self._anchored).match

    def matches(self, path: bytes, name: bytes, directory: bool) -> bool:
        """Whether it is about this path, relative to the directory of the pattern, whose last part is `name`."""
        if self._directories and not directory:
            return False
        return self._match(path if self._anchored else name) is not None


class Patterns:
    """The lines of one file, or of several of one directory; those that come later win."""

    __slots__ = ("_patterns",)

    def __init__(self, lines: Iterable[bytes]) -> None:
        # The last one that matches decides: it is looked for from the end.
        self._patterns = [Pattern(line) for raw in lines if (line := _cleaned(raw))][::-1]

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def ignored(self, path: bytes, directory: bool) -> bool | None:
        """Whether this path, relative to where the patterns stand, is ignored; None if no line is about it."""
        name = path[path.rfind(b"/") + 1 :]
        for pattern in self._patterns:
            if pattern.matches(path, name, directory):
                return not pattern.negative
        return None


def lines_of(content: bytes) -> list[bytes]:
    """The lines of an ignore file."""
    return content.removeprefix(_BOM).split(b"\n")


class Selection:
    """What of a directory or a site is wanted: patterns of which one must match, and those of which none may.

    They are written like lines of an ignore file, and relative to the directory, or to the root of the site. One that
    matches a directory stands for all that is in it. Raises ValueError for an empty one.
    """

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        self._include = self._patterns(include)
        self._exclude = self._patterns(exclude)

    @staticmethod
    def _patterns(given: Iterable[str]) -> list[Pattern]:
        if isinstance(given, str):
            raise TypeError("patterns is one pattern: give a list of them")
        patterns = []
        for text in given:
            data = text.encode("utf-8", "surrogateescape")
            if not data.strip(b"/") or b"\0" in data:
                raise ValueError(f"a pattern is like *.md or docs/**, not {text!r}")
            patterns.append(Pattern(b"\\" + data if data.startswith(b"!") else data))
        return patterns

    def excludes(self, path: bytes, directory: bool) -> bool:
        """Whether this path itself is excluded; those above it have been asked for before."""
        name = path[path.rfind(b"/") + 1 :]
        return any(pattern.matches(path, name, directory) for pattern in self._exclude)

    def includes(self, path: bytes) -> bool:
        """Whether this file, or a directory that it is in, is included."""
        return not self._include or any(
            pattern.matches(part, part[part.rfind(b"/") + 1 :], part is not path)
            for pattern in self._include
            for part in _with_parents(path)
        )

    def excludes_page(self, path: bytes) -> bool:
        """Whether this path, or a directory that it is in, is excluded."""
        return bool(self._exclude) and any(
            self.excludes(part, part is not path) for part in _with_parents(path)
        )


def _with_parents(path: bytes) -> list[bytes]:
    parts = [path]
    end = len(path)
    while (end := path.rfind(b"/", 0, end)) > 0:
        parts.append(path[:end])
    return parts


def _cleaned(line: bytes) -> bytes:
    """The pattern of a line; empty for a comment and for nothing."""
    if line.startswith(b"#"):
        return b""
    line = line.removesuffix(b"\r").partition(b"\0")[0]
    # Spaces at the end count only where a backslash stands before them.
    kept, position = 0, 0
    while position < len(line):
        if line[position] == 0x5C:
            position += 2
            kept = min(position, len(line))
            if position > len(line):
                break
        else:
            position += 1
            if line[position - 1] != 0x20:
                kept = position
    line = line[:kept]
    return b"" if line.strip(b"/") in (b"", b"!") else line


@lru_cache(maxsize=4096)
def _regex(text: bytes, anchored: bool) -> re.Pattern[bytes]:
    try:
        if not anchored:
            return re.compile(_segment(_tokens(text)) + rb"\Z", re.DOTALL)
        # Git compares what comes before the first special character on its own: a `**` right after it is at a start.
        plain = next((index for index, byte in enumerate(text) if byte in _SPECIAL), len(text))
        return re.compile(re.escape(text[:plain]) + _path(text[plain:]) + rb"\Z", re.DOTALL)
    except _Broken:
        return re.compile(_NEVER)


def _path(text: bytes) -> bytes:
    """The expression for a path: segments, of which `**` stands for any number."""
    # What comes between two `**` has a fixed number of segments: where it matches first, it may stay.
    expression, group, tokens, in_group = b"", b"", _tokens(text), False
    segments = _split(tokens)
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        if len(segment) >= 2 and all(token == b"*" for token in segment):
            if last:
                # It matches all the rest.
                expression += _closed(group, in_group) + rb".*"
                return expression
            expression += _closed(group, in_group)
            group, in_group = b"", True
        else:
            group += _segment(segment) + (b"" if last else b"/")
    if in_group:
        return expression + rb"(?:[^/]*/)*" + group
    return expression + group


def _closed(group: bytes, after_stars: bool) -> bytes:
    if not after_stars:
        return group
    return rb"(?>(?:[^/]*/)*?" + group + rb")" if group else b""


def _split(tokens: list[bytes]) -> list[list[bytes]]:
    segments: list[list[bytes]] = [[]]
    for token in tokens:
        if token == b"/":
            segments.append([])
        else:
            segments[-1].append(token)
    return segments


def _segment(tokens: list[bytes]) -> bytes:
    """The expression for a part between slashes, to be followed by a slash or the end."""
    chunks: list[bytes] = [b""]
    for token in tokens:
        if token == b"*":
            chunks.append(b"")
        else:
            chunks[-1] += token
    first, *rest = chunks
    if not rest:
        return first
    # Each chunk has a fixed length: where it matches first, it may stay, but for the last, which is at the end.
    middle = b"".join(rb"(?>[^/]*?" + chunk + rb")" for chunk in rest[:-1] if chunk)
    return first + middle + rb"[^/]*" + rest[-1]


def _tokens(text: bytes) -> list[bytes]:
    """Expressions for one byte each, with `*` and `/` as they are."""
    tokens, position = [], 0
    while position < len(text):
        byte = text[position : position + 1]
        position += 1
        if byte in (b"*", b"/"):
            tokens.append(byte)
        elif byte == b"?":
            tokens.append(rb"[^/]")
        elif byte == b"[":
            token, position = _bracket(text, position)
            tokens.append(token)
        elif byte == b"\\":
            if position == len(text):
                raise _Broken
            # An escaped slash ends a segment like any other.
            tokens.append(re.escape(text[position : position + 1]))
            position += 1
        else:
            tokens.append(re.escape(byte))
    return tokens


def _bracket(text: bytes, position: int) -> tuple[bytes, int]:
    """The set that begins after this `[`, and the position after its `]`."""
    negated = text[position : position + 1] in (b"!", b"^")
    if negated:
        position += 1
    members: list[bytes] = []
    previous: int | None = None
    first = True
    while True:
        if position >= len(text):
            raise _Broken
        byte = text[position]
        if byte == 0x5D and not first:
            position += 1
            break
        first = False
        following = text[position + 1 : position + 2]
        if byte == 0x5C:
            if not following:
                raise _Broken
            previous = following[0]
            members.append(_member(previous))
            position += 2
        elif byte == 0x2D and previous is not None and following and following != b"]":
            position += 1
            if following == b"\\":
                position += 1
                if position >= len(text):
                    raise _Broken
            end = text[position]
            if previous <= end:
                members.append(_member(previous) + b"-" + _member(end))
            previous = None
            position += 1
        elif byte == 0x5B and following == b":" and (found := _class(text, position + 2)) is not None:
            member, position = found
            members.append(member)
            previous = None
        else:
            members.append(_member(byte))
            previous = byte
            position += 1
    inside = b"".join(members)
    if negated:
        return rb"[^/" + inside + b"]", position
    # Not even a set that names it matches a slash.
    return (rb"(?!/)[" + inside + b"]" if inside else _NEVER), position


def _class(text: bytes, position: int) -> tuple[bytes, int] | None:
    """The members of the class whose name begins here, and the position after its `:]`; None if it is none."""
    end = text.find(b"]", position)
    if end < 0:
        raise _Broken
    if end == position or text[end - 1 : end] != b":":
        return None
    members = _CLASSES.get(text[position : end - 1])
    if members is None:
        raise _Broken
    return members, end + 1


def _member(byte: int) -> bytes:
    return b"\\x%02x" % byte
