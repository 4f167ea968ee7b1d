"""Text as PostgreSQL can hold it, and its terms as they are counted.

PostgreSQL has no NUL in a text, and no halves of characters (lone surrogates). Both are written as control characters,
which every locale takes for blanks: ESCAPE and one more for NUL and for ESCAPE itself, ESCAPE and four octal digits of
a kind for a surrogate. All other text, and that is nearly all there is, is stored as it is.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

from unwait.documents.words import is_character, words

ESCAPE = "\x10"
_NUL = "\x0e"
_SPECIAL = re.compile("[\x00\x10\ud800-\udfff]")
_ESCAPED = re.compile("\x10(?:([\x0e\x10])|([\x01-\x08]{4}))")
_LONGEST_TERM = 500  # characters: within PostgreSQL's limit on what is in an index


def stored(text: str) -> str:
    """The text as it is stored; `original` gives it back, to the character."""
    if "\x00" not in text and ESCAPE not in text:
        try:
            text.encode()
        except UnicodeEncodeError:
            pass
        else:
            return text
    return _SPECIAL.sub(_escape, text)


def original(text: str) -> str:
    """The text that was given to `stored`."""
    return _ESCAPED.sub(_unescape, text) if ESCAPE in text else text


def stored_or_none(text: str | None) -> str | None:
    return None if text is None else stored(text)


def original_or_none(text: str | None) -> str | None:
    return None if text is None else original(text)


def stored_json(value: object) -> str:
    """The value as JSON, as it is stored."""
    # With "\\ud83d\\ude00" for two halves of a character, a whole one would come back.
    return stored(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def original_json(text: str) -> Any:
    """The value that was given to `stored_json`."""
    return json.loads(original(text))


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character == "\x00":
        return ESCAPE + _NUL
    if character == ESCAPE:
        return ESCAPE + ESCAPE
    return ESCAPE + "".join(chr(1 + int(digit)) for digit in f"{ord(character) - 0xD800:04o}")


def _unescape(match: re.Match[str]) -> str:
    if match[1] is not None:
        return "\x00" if match[1] == _NUL else ESCAPE
    return chr(0xD800 + int("".join(str(ord(digit) - 1) for digit in match[2]), 8))


def term(words: tuple[str, ...]) -> str:
    """The word, or the neighbours, as they are stored."""
    return "".join(words)[:_LONGEST_TERM]


def terms(text: str) -> tuple[list[str], int]:
    """The words of the text and the neighbours in it, as often as they occur; and how many words there are."""
    found = words(text).split()
    count = len(found)
    if not text.isascii():
        characters = list(map(is_character, found))
        found += [
            term(pair)
            for pair, both in zip(itertools.pairwise(found), itertools.pairwise(characters), strict=True)
            if all(both)
        ]
    return [word[:_LONGEST_TERM] for word in found], count


def facets(metadata: Mapping[str, Any]) -> list[str]:
    """Each name with its value, where that is a text, a number, or true or false: what a filter compares."""
    return [
        facet(name, value if isinstance(value, str) else json.dumps(value))
        for name, value in metadata.items()
        if isinstance(value, str | int | float)
    ]


def facet(name: str, value: str) -> str:
    return stored_json([name, value])


def like(source: str) -> str:
    """The pattern of SQL's LIKE for the source of a filter: a beginning, or a whole URI with `*` for anything."""
    escaped = re.sub(r"([\\%_])", r"\\\1", stored(source))
    return escaped.replace("*", "%") if "*" in source else escaped + "%"
