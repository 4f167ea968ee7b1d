"""A summary without a model: sentences of the document that stand for it, by the vectors of its chunks.

Chunks are taken by maximal marginal relevance: near to the mean of all, and far from those already taken. Of each, the
first sentence that reads as one is quoted, word for word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from unwait.documents.model import Chunk

if TYPE_CHECKING:
    from unwait.documents.model import Vectors

VERSION = "1"

RELEVANCE = 0.7
"""How much nearness to the document counts against nearness to what is already taken."""

TRIES = 4
"""Chunks that are looked at for each sentence wanted, where the first ones hold nothing but tables, say."""

LEADING = 6
"""Sentences, headings and rows at the beginning of a chunk among which its sentence is chosen."""

READ = 4_000
"""Characters of a chunk that are searched for them."""

LONGEST = 400
"""Characters beyond which a sentence is none that one wants to read."""

# A paragraph ends with an empty line, an item of a list with the beginning of the next.
_BLOCK = re.compile(r"\n[ \t\r]*\n\s*|\n\s{0,99}+(?=(?:[-*+•·–]|\(?\d{1,3}[.)]|[a-z][.)])\s)")  # noqa: RUF001
_MARKER = re.compile(r"\s*(?:(?:[-*+•·–>]|\(?\d{1,3}[.)]|[a-z][.)]|#{1,6})\s+)*")  # noqa: RUF001
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]]*+(?=\s+[\"'“‘«(\[]*[^\W_a-z]|\s*\Z)|[。！？]+[」』”）]*")  # noqa: RUF001
_NOT_AN_END = re.compile(
    r"(?:\b(?:[A-Za-z]|[A-Za-z](?:\.[A-Za-z])+|approx|bzw|ca|[Cc]f|[Cc]hap|col|Dr|ed|eq|esp|etc|ex|[Ff]ig|Inc|incl|Jr|Ltd|max"
    r"|min|Mr|Mrs|Ms|No|Nr|op|p|pp|Prof|resp|[Ss]ec|Sr|St|usw|viz|[Vv]ol|vs))\.\Z"
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_SIGNS = re.compile(r"[^\w\s,.;:'’\"“”()–—-]")  # noqa: RUF001

_STOPS = frozenset(".!?…。！？")  # noqa: RUF001
_WIDE_STOPS = frozenset("。！？")  # noqa: RUF001
_BRACKETS = "\"'”’»)]」』）"  # noqa: RUF001
_CLOSING = _STOPS | set(_BRACKETS)

PROSE, SENTENCE, WORDS, ANYTHING = range(4)


def summary(chunks: Sequence[Chunk], vectors: Vectors, *, sentences: int = 3, characters: int = 500) -> str:
    """At most so many sentences of the document and so many characters, in the order of the text.

    `vectors` has a row for each chunk. The words are those of the document, with single spaces between them; a text
    that is short enough is given back as it is. Headings, rows of tables and code are quoted only where a document
    has nothing better.
    """
    if not chunks or sentences < 1 or characters < 1:
        return ""
    if chunks[-1].end - chunks[0].start <= characters:
        return _text(chunks).strip()
    found: list[tuple[int, int, int, str]] = []
    good = 0
    for index in _by_relevance(vectors, min(len(chunks), sentences * TRIES)):
        kind, offset, words = _lead(chunks, index, characters)
        if words and all(words != other for *_, other in found):
            found.append((kind, len(found), chunks[index].start + offset, words))
            good += kind == PROSE
        if good == sentences:
            break
    taken: list[tuple[int, str]] = []
    left, wanted = characters, sentences
    # Of the best kind only, in the order in which they were found.
    best = min((kind for kind, *_ in found), default=PROSE)
    for kind, _, place, words in sorted(found):
        if kind > best or not wanted:
            break
        if len(words) <= left:
            taken.append((place, words))
            left -= len(words) + 1
            wanted -= 1
    return " ".join(words for _, words in sorted(taken))


def _text(chunks: Sequence[Chunk]) -> str:
    pieces, end = [], chunks[0].start
    for chunk in chunks:
        pieces.append(chunk.text[end - chunk.start :])
        end = chunk.end
    return "".join(pieces)


def _by_relevance(vectors: Vectors, most: int) -> Iterator[int]:
    """The rows by maximal marginal relevance, the best first."""
    import numpy as np

    # By einsum: BLAS would wake a thread of its own for larger ones, and now and then wait 8 ms for that one's turn.
    mean = vectors.mean(axis=0)
    relevance = np.einsum("ij,j->i", vectors, mean)
    length = float(mean @ mean) ** 0.5
    relevance *= RELEVANCE / length if length else 0.0
    nearest = None
    for _ in range(most):
        row = int((relevance if nearest is None else relevance - nearest).argmax())
        yield row
        relevance[row] = -float("inf")
        near = np.einsum("ij,j->i", vectors, vectors[row])
        near *= 1 - RELEVANCE
        nearest = near if nearest is None else nearest.clip(min=near)


def _lead(chunks: Sequence[Chunk], index: int, characters: int) -> tuple[int, int, str]:
    """The sentence that stands for the chunk: its kind, its offset in the chunk, and its words."""
    chunk = chunks[index]
    text = chunk.text[:READ]
    best = ANYTHING + 1, 0, ""
    for start, end in islice(_sentences(text), LEADING):
        words = " ".join(text[start:end].split())
        kind = _kind(words)
        if words in chunk.section:
            kind = max(kind, WORDS)
        elif kind == PROSE and start == 0 and index and not _ended(chunks[index - 1], chunk):
            kind = SENTENCE
        if kind < best[0] and words:
            best = kind, start, _cut(words, characters)
            if kind == PROSE:
                break
    return best


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Where sentences begin and end, by paragraphs and items of lists."""
    start = 0
    while start < len(text):
        block = _BLOCK.search(text, start)
        end, following = (block.start(), block.end()) if block else (len(text), len(text))
        marker = _MARKER.match(text, start, end)
        begin = marker.end() if marker else start
        for match in _END.finditer(text, begin, end):
            if match.end() < end and _NOT_AN_END.search(text, max(begin, match.end() - 20), match.end()):
                continue
            yield begin, match.end()
            begin = match.end()
            while begin < end and text[begin].isspace():
                begin += 1
        if begin < end:
            yield begin, end
        start = following


def _kind(words: str) -> int:
    if words[-1:] not in _CLOSING or words.rstrip(_BRACKETS)[-1:] not in _STOPS:
        return WORDS if _WORD.search(words) else ANYTHING
    if words[-1] in _WIDE_STOPS:
        return PROSE if 10 < len(words) <= LONGEST else SENTENCE
    count = len(_WORD.findall(words, 0, LONGEST))
    if count < 3 or "|" in words:
        return WORDS if count else ANYTHING
    if len(_SIGNS.findall(words, 0, LONGEST)) * 12 > len(words):
        return WORDS
    return PROSE if count >= 5 and len(words) <= LONGEST and not words[0].islower() else SENTENCE


def _ended(before: Chunk, chunk: Chunk) -> bool:
    """Whether a sentence can begin where the chunk does."""
    if chunk.start < before.end:
        return False
    tail = before.text[-80:].rstrip()
    return before.text.endswith("\n") or before.section != chunk.section or bool(_END.search(tail[-3:]))


def _cut(words: str, characters: int) -> str:
    """At most so many characters, whole words if there are any."""
    if len(words) <= characters:
        return words
    return (words[: characters - 1].rpartition(" ")[0] or words[: characters - 1]) + "…"
