"""BM25 over what is stored of each word: in which chunks it is, how often, and how long those are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

K1 = 1.2
B = 0.75
_LEAST_RARITY = 1e-6  # of a word that is in most chunks: as in SQLite's BM25
POSITION_BITS = 24  # of a chunk's key; the others are its document's

# As the server writes them: network order.
_ENTRY = np.dtype([("position", ">i4"), ("frequency", ">i4"), ("length", ">i4")])
ENTRY_BYTES = _ENTRY.itemsize


class Postings(NamedTuple):
    """A word's: the document of each row (int64), how many chunks are in it (int32), and these, one after the other.

    A chunk's entry is its position, how often the word is in it (in title and section it counts several times), and how
    many words the chunk has.
    """

    documents: bytes
    counts: bytes
    entries: bytes


class Ranked(NamedTuple):
    """Chunks and their scores."""

    documents: list[int]
    positions: list[int]
    scores: list[float]


def bm25(
    postings: Sequence[Postings], chunks: int, words: int, depth: int, documents: Sequence[int] | None
) -> Ranked:
    """The chunks with the `depth` highest scores, in no order, and all others that score like the last of them.

    There must be a word. `chunks` and `words` are the totals of the store; `documents` are those to be ranked, None
    for all.
    """
    average = words / chunks
    keys: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float64]] = []
    for word in postings:
        entries = np.frombuffer(word.entries, _ENTRY)
        rows = np.frombuffer(word.documents, ">i8").astype(np.int64)
        counts = np.frombuffer(word.counts, ">i4")
        frequency = entries["frequency"].astype(np.float64)
        length = entries["length"].astype(np.float64)
        matching = len(entries)
        rarity = max(_LEAST_RARITY, math.log((chunks - matching + 0.5) / (matching + 0.5)))
        scores.append(rarity * (frequency * (K1 + 1) / (frequency + K1 * (1 - B + B * length / average))))
        keys.append(np.repeat(rows << POSITION_BITS, counts) | entries["position"])
    # Scores of the same words in the same order are added in the same order: what is equal stays equal.
    key = np.concatenate(keys)
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
    score = np.add.reduceat(np.concatenate(scores)[order], first)
    key = key[first]
    if documents is not None:
        among = np.isin(key >> POSITION_BITS, np.array(documents, np.int64))
        key, score = key[among], score[among]
    if len(score) > depth:
        best = score >= np.partition(score, -depth)[-depth]
        key, score = key[best], score[best]
    return Ranked(
        (key >> POSITION_BITS).tolist(), (key & ((1 << POSITION_BITS) - 1)).tolist(), score.tolist()
    )
