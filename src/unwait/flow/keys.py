"""Keys: the name of an item in the journal, the same in every process that meets the item.

A string that is short and printable is its own key. Everything else gets a key with a prefix that no string's
key begins with, so that 1 and "1" are two items:

    item:…            the item written out: item:5, item:{"id":7}, item:("a",None)
    str:…             a string that itself begins with one of these prefixes
    sha256:… text     what is long, not printable, or has a credential in it: a digest of the whole, and the
                      beginning (scrubbed) for people to recognise it by
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from enum import Enum
from hashlib import sha256
from pathlib import PurePath, PurePosixPath
from typing import Any

from unwait.flow.faults import scrub

LONGEST = 200
_HINT = 60
_SCRUBBED = (
    1000  # an item may be a whole document: only so much of it is searched for what the hint must not show
)
_PREFIXES = ("item:", "str:", "sha256:")
# By code point and not by `str.isprintable`, whose answer changes with the Unicode tables of the Python.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\xa0\xad\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_ESCAPED = re.compile(_UNPRINTABLE.pattern[:-1] + r'"\\]')


def derive_key(item: Any) -> str:
    """The key of an item: strings, numbers, bytes, None, paths, dates, and what tuples, lists, dicts, sets,
    dataclasses, enums and pydantic models make of these. Two items have the same key only if they are equal
    in type and value.

    Raises TypeError for other items, which may look different in the next process: give `key=` for those.
    """
    if type(item) is int and -(10**18) < item < 10**18:
        return f"item:{item}"
    if type(item) is str:
        return _bounded(f"str:{item}" if item.startswith(_PREFIXES) else item)
    try:
        return _bounded(f"item:{_written(item)}")
    except RecursionError:
        raise TypeError(
            f"no key can be derived from an item of type {_kind(item)} that is nested too deep or "
            "contains itself: give key=, a function that makes a str or an int of an item"
        ) from None


def check_key(value: Any) -> str:
    """The key for what a user's `key` function returned, a str or an int. Raises TypeError for anything else."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        return derive_key(value)
    raise TypeError(
        f"key= returned {_kind(value)}: a key is a str or an int, that names the item and is the same in the next run"
    )


def _bounded(text: str) -> str:
    plain = text.isprintable() if text.isascii() else _UNPRINTABLE.search(text) is None
    if plain and len(text) <= LONGEST and scrub(text) == text:
        return text
    digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]
    hint = _UNPRINTABLE.sub(" ", scrub(text[:_SCRUBBED])[:_HINT]).strip()
    return f"sha256:{digest} {hint}"


def _written(value: Any) -> str:
    """The value in an unambiguous notation, close to Python's own."""
    write = _WRITERS.get(type(value))
    return write(value) if write is not None else _written_as_kind(value)


def _string(value: str) -> str:
    if _ESCAPED.search(value) is None:
        return f'"{value}"'
    return '"' + _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", value) + '"'


def _integer(value: int) -> str:
    try:
        return int.__repr__(value)
    except ValueError:  # more digits than Python writes in decimal
        return hex(value)


def _mapping(value: Any) -> str:
    return "{" + ",".join(sorted(f"{_written(key)}:{_written(inner)}" for key, inner in value.items())) + "}"


def _list(value: Any) -> str:
    return "[" + ",".join(map(_written, value)) + "]"


def _tuple(value: Any) -> str:
    return "(" + ",".join(map(_written, value)) + ")"


def _set(value: Any) -> str:
    return "{" + ",".join(sorted(map(_written, value))) + "}"


_WRITERS: dict[type, Callable[[Any], str]] = {
    str: _string,
    int: _integer,
    bool: repr,
    type(None): repr,
    float: repr,
    complex: repr,
    bytes: lambda value: f'bytes"{value.hex()}"',
    dict: _mapping,
    list: _list,
    tuple: _tuple,
    set: lambda value: f"set{_set(value)}",
    frozenset: lambda value: f"frozenset{_set(value)}",
}
# By name, so that nothing is imported for types that no item has. What `str` says of these is all they are.
_TOLD_BY_STR = {
    "datetime.date",
    "datetime.datetime",
    "datetime.time",
    "datetime.timedelta",
    "decimal.Decimal",
    "fractions.Fraction",
    "uuid.UUID",
    "ipaddress.IPv4Address",
    "ipaddress.IPv6Address",
}


def _written_as_kind(value: Any) -> str:
    kind = type(value)
    name = type_name(kind)
    if isinstance(value, Enum):
        # Flags without a name differ by their value.
        return f"{name}.{value.name}" if value.name is not None else f"{name}({_written(value.value)})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return f"{name}({','.join(f'{field}={_written(inner)}' for field, inner in fields)})"
    if isinstance(value, PurePath):
        return f"{'path' if isinstance(value, PurePosixPath) else 'windows-path'}{_string(str(value))}"
    if name in _TOLD_BY_STR:
        return f"{name}{_string(str(value))}"
    model_dump = getattr(value, "model_dump", None)
    if callable(model_dump) and not isinstance(value, type):
        return f"{name}{_written(model_dump())}"
    for base in (tuple, list, dict, str):
        # A named tuple, a default dict: its name and its contents, if those are all there is to it.
        if isinstance(value, base) and not getattr(value, "__dict__", None):
            return f"{name}{_WRITERS[base](value)}"
    raise TypeError(
        f"no key can be derived from a value of type {_kind(value)}, which could look different in the next "
        "process: give key=, a function that makes a str or an int of an item"
    )


def _kind(value: Any) -> str:
    name = type_name(type(value))
    return name.removeprefix("builtins.")


def type_name(kind: Any) -> str:
    """`module.qualname` of a class or function; the module of a script is the name of its file."""
    module = kind.__module__
    return f"{main_name() if module == '__main__' else module}.{kind.__qualname__}"


def main_name() -> str:
    """What `__main__` is called when it is imported: the name after `-m`, or the script's without `.py`."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    file = getattr(main, "__file__", None)
    return PurePath(file).stem if file else "__main__"
