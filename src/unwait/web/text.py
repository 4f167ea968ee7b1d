"""Bodies as text: the first characters of one, safe to show on a terminal."""

from __future__ import annotations

import codecs

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Python's own, which no server means: they read a body as source code, or take time that grows with its square.
_NOT_OF_THE_WEB = frozenset(("punycode", "unicode-escape", "raw-unicode-escape"))


def printable(text: str) -> str:
    """The text on one line: white space joined, every other character that is not printable made U+FFFD."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def encoding_of(content: bytes, charset: str | None) -> str:
    """The encoding of a body: a byte-order mark wins over `charset`; without both, or with an unknown one, UTF-8."""
    encoding = next(
        (name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), charset or "utf-8"
    )
    try:
        # Refuses what is a codec but no charset, such as zip.
        b"text".decode(encoding, "replace")
        if codecs.lookup(encoding).name.replace("_", "-") in _NOT_OF_THE_WEB:
            return "utf-8"
    except (LookupError, ValueError):
        return "utf-8"
    return encoding


def first_characters(head: bytes, charset: str | None, count: int) -> str:
    """The first `count` printable characters of a body that begins with `head`, in its `encoding_of`."""
    try:
        # Incremental, so that a character cut off at the end is left out.
        text = codecs.getincrementaldecoder(encoding_of(head, charset))("replace").decode(head)
    except (LookupError, ValueError):
        text = head.decode("utf-8", "replace")
    return printable(text)[:count].rstrip()
