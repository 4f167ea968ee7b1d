"""A line of a JSON Lines file: an object, of which one field is the text."""

from __future__ import annotations

import json
import math
from typing import Any

from unwait.documents.model import Content, SourceFailed, Text
from unwait.documents.plain import check_length, file_name, lines_of, shortened

LINE = "application/jsonl-line"
"""The media type of a Content whose bytes are one line of a JSON Lines file."""

_TITLES = ("title", "name")
_LONGEST_VALUE = 500  # characters of a string that is still metadata and not another text


def line(content: Content, name: str, *, text_field: str, max_characters: int) -> Text:
    """The text in the object's `text_field`; the title in "title" or "name"; other plain values are metadata.

    Raises SourceFailed: "broken" if it is no JSON object or has no string in that field.
    """
    try:
        data: Any = json.loads(content.body)
    except (ValueError, RecursionError) as error:
        raise SourceFailed(f"the line is no JSON: {error}", kind="broken") from None
    if not isinstance(data, dict):
        raise SourceFailed(f"the line is {_kind(data)}, not a JSON object", kind="broken")
    text = data.get(text_field)
    if not isinstance(text, str):
        fields = ", ".join(sorted(data)[:10]) or "none"
        wrong = "is missing" if text_field not in data else f"is {_kind(text)}, not a string"
        raise SourceFailed(
            f"the line's field {text_field!r} {wrong}; its fields: {shortened(fields)}. --text-field names another",
            kind="broken",
        )
    check_length(len(text), max_characters)
    titles = (data[field] for field in _TITLES if field != text_field and isinstance(data.get(field), str))
    title = next((short for title in titles if (short := shortened(title))), "")
    metadata = {
        field: value
        for field, value in data.items()
        if field != text_field and field not in _TITLES and is_metadata(value)
    }
    return Text(lines_of(text), title or file_name(name), "jsonl", metadata=metadata)


def is_metadata(value: object) -> bool:
    """Whether a field is metadata: a plain value, and no text of its own."""
    if isinstance(value, str):
        return len(value) <= _LONGEST_VALUE
    # A number like 1e999 is read as infinity, which is not JSON.
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")
