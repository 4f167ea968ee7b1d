"""The lines of a JSON Lines file as sources. Blocks, and runs in threads."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from hashlib import blake2b
from typing import Any, NoReturn

from unwait.documents.files import opened, too_large, unreadable
from unwait.documents.lines import LINE, is_metadata
from unwait.documents.model import Content, Source, SourceFailed
from unwait.documents.names import shown

_BLOCK = 1 << 18
_BOM = b"\xef\xbb\xbf"


def read(
    path: str, uri: str, origin: str, text_field: str, most: int, kept: str | None
) -> Generator[tuple[int, Source] | None, None, None]:
    """Each line with its number, from 1, as a source of the file `uri`, or as its problem; empty ones are left out.

    Lines of more than `most` bytes are a problem, and are not held in memory. `kept` is the sources' `path`. A problem
    of the file itself has the number 0.
    """
    try:
        file = opened(path)
    except SourceFailed as problem:
        yield 0, Source(uri, origin, path=kept, problem=problem)
        return
    with file:
        number = 0
        pieces: list[bytes] = []
        held = 0
        while True:
            try:
                block = file.read(_BLOCK)
            except OSError as error:
                yield 0, Source(uri, origin, path=kept, problem=unreadable(error))
                return
            *ended, rest = block.split(b"\n") if block else (b"", b"")
            for piece in ended:
                number += 1
                pieces.append(piece)
                if held + len(piece) > most:
                    yield number, Source(f"{uri}#line {number}", origin, path=kept, problem=too_large(most))
                else:
                    line = b"".join(pieces)
                    yield _source(
                        line.removeprefix(_BOM) if number == 1 else line,
                        number,
                        uri,
                        origin,
                        text_field,
                        kept,
                    )
                pieces, held = [], 0
            if not block:
                return
            held += len(rest)
            pieces = [*pieces, rest] if held <= most else []
            # There may be no end of a line for long.
            yield None


def _source(
    line: bytes, number: int, uri: str, origin: str, text_field: str, path: str | None
) -> tuple[int, Source] | None:
    line = line.strip()
    if not line:
        return None
    # An id may be a number as well: the two must not meet.
    id: str | int | float = f"line {number}"
    metadata: Mapping[str, Any] = {}
    problem = None
    try:
        fields = json.loads(line.decode(), parse_constant=_no_constant)
        if not isinstance(fields, dict):
            raise ValueError("it is not an object")
    except UnicodeDecodeError as error:
        problem = f"it is not UTF-8 from byte {error.start + 1} on"
    except json.JSONDecodeError as error:
        problem = f"it is not JSON: {error.msg} at character {error.colno}"
    except RecursionError:
        problem = "its JSON is nested too deep"
    except ValueError as error:
        problem = str(error)[:100]
    else:
        id = _id(fields.get("id"), id)
        metadata = {
            name: value
            for name, value in fields.items()
            if name not in ("id", text_field) and is_metadata(value)
        }
    source_uri = f"{uri}#{shown(str(id))}"
    if problem is not None:
        failed = SourceFailed(f"line {number} is not a JSON object: {problem}", kind="broken")
        return number, Source(source_uri, origin, path=path, problem=failed)
    digest = blake2b(line, digest_size=16).hexdigest()
    content = Content(line, digest, LINE, "utf-8")
    return number, Source(source_uri, origin, path=path, content=content, metadata=metadata)


def _id(given: object, default: str | int | float) -> str | int | float:
    if isinstance(given, str | int | float) and not isinstance(given, bool) and given != "":
        return given
    return default


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
