"""How values become bytes for the journal, and values again."""

from __future__ import annotations

import json
from typing import Any, Protocol, runtime_checkable

# A bound of SQLite's own, for one row: it is refused here, where it costs one item and not the run.
LARGEST = 999_000_000
_CONTAINERS = (dict, list, tuple)


class CodecError(Exception):
    """A result that the journal cannot store. Nothing is lost: the result is in `value`, the item's key in `key`."""

    def __init__(self, message: str, *, key: str, value: Any) -> None:
        super().__init__(message)
        self.key = key
        self.value = value

    def __reduce__(self) -> Any:
        return _codec_error, (self.args[0], self.key, self.value)


def _codec_error(message: str, key: str, value: Any) -> CodecError:
    return CodecError(message, key=key, value=value)


@runtime_checkable
class Codec(Protocol):
    """What the journal needs of a codec.

    `name` is written into the journal, which is refused later to a codec of another name. `encode` may raise
    anything for a value that it cannot take. What `decode` makes of the bytes is what the run hands out, in
    the run that made the call as well as in a later one.
    """

    name: str

    def encode(self, value: Any) -> bytes: ...

    def decode(self, data: bytes) -> Any: ...


class JsonCodec:
    """JSON, compact. Tuples come back as lists and keys of dicts as strings; NaN and the infinities are kept.

    It takes what the standard library's `json` takes, but no dict in which two keys would become one.
    """

    name = "json"

    def __init__(self) -> None:
        self._encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        self._decode = json.JSONDecoder().raw_decode

    def encode(self, value: Any) -> bytes:
        text = self._encode(value)
        if isinstance(value, _CONTAINERS):
            _refuse_merged_keys(value)
        # A lone surrogate (half a character, as in names of undecodable files) comes back as it was.
        return text.encode("utf-8", "surrogatepass")

    def decode(self, data: bytes) -> Any:
        return self._decode(data.decode("utf-8", "surrogatepass"))[0]


class PickleCodec:
    """Pickle: almost any value, but whoever can write the file can run code in the process that reads it."""

    name = "pickle"

    def __init__(self) -> None:
        import pickle

        self._dumps = pickle.dumps
        self._loads = pickle.loads

    def encode(self, value: Any) -> bytes:
        return self._dumps(value, 5)

    def decode(self, data: bytes) -> Any:
        return self._loads(data)


def codec_named(codec: str | Codec) -> Codec:
    """The codec itself, or the one that "json" or "pickle" names. Raises ValueError or TypeError for others."""
    if codec == "json":
        return JsonCodec()
    if codec == "pickle":
        return PickleCodec()
    if isinstance(codec, str):
        raise ValueError(
            f'no codec is named {codec!r}: "json", "pickle", or an object with name, encode and decode'
        )
    if not isinstance(codec, Codec) or not isinstance(codec.name, str):
        raise TypeError(
            f'a codec is "json", "pickle", or an object with name, encode and decode, not {codec!r}'
        )
    return codec


def encode(codec: Codec, key: str, value: Any) -> tuple[bytes, Any]:
    """The bytes of a value, and the value as it will come back. Raises CodecError."""
    try:
        data = codec.encode(value)
        if not isinstance(data, bytes):
            raise TypeError(f"the codec's encode gave {_kind(data)}, not bytes")
        if len(data) > LARGEST:
            raise ValueError(f"it takes {len(data):,} bytes, and a row holds {LARGEST:,}")
        return data, codec.decode(data)
    except Exception as error:
        # RecursionError too: a value nested too deep.
        what_to_do = (
            'Return dicts, lists, strings, numbers, booleans and None, or use Journal(path, codec="pickle").'
            if codec.name == "json"
            else "Return something that can be stored, or give the journal another codec."
        )
        raise CodecError(
            f"the result of item {key!r}, {_kind(value)}, cannot be stored with the codec {codec.name!r}: "
            f"{error or type(error).__name__}. {what_to_do} The result itself is in this error's `value`.",
            key=key,
            value=value,
        ) from error


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _refuse_merged_keys(value: Any) -> None:
    """Raise ValueError for a dict in which JSON would make one key of two: {1: "a", "1": "b"}."""
    if isinstance(value, dict):
        # Only a string and something that is none can become the same string.
        others = [key for key in value if not isinstance(key, str)]
        if 0 < len(others) < len(value):
            written = json.loads(json.dumps(dict.fromkeys(others)))
            if any(key in value for key in written):
                raise ValueError("two keys of a dict would become the same string")
        value = value.values()
    for inner in value:
        if isinstance(inner, _CONTAINERS):
            _refuse_merged_keys(inner)
