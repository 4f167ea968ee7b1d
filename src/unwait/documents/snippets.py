"""A few words of a chunk that show why it was found."""

from __future__ import annotations

import re

from unwait.documents.words import MOST_WORDS, UNSPACED, words

_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
# What would steer a terminal, or turn the line around; half characters, which cannot be printed.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_HALF = re.compile(r"[\ud800-\udfff]")
_FARTHEST = 30  # characters that are left out for the sake of a whole word
_BEGINNING = 3  # characters that forms of one word share at least
_LONGEST_WORD = 8  # from here on, longer words count no more than others


def snippet(text: str, query: str, *, most: int = 200) -> str:
    """The passage of the text that holds most of the query's words, in one line of at most `most` characters.

    It is cut between words, with `…` for what is left out. A text that has none of the words is cut at its end.
    """
    line = " ".join(_HALF.sub("\N{REPLACEMENT CHARACTER}", _CONTROL.sub(" ", text)).split())
    if len(line) <= most:
        return line
    room = most - 2
    first, last = _passage(line, query, room)
    # What is to be seen in the middle, with the words before it rather than those after it.
    start = max(0, min(first - (room - (last - first)) // 2, len(line) - room))
    end = start + room
    if start:
        space = line.find(" ", start - 1, min(start + _FARTHEST, max(first, start)))
        start = space + 1 if space >= 0 else start
    if end < len(line):
        space = line.rfind(" ", max(end - _FARTHEST, last), end + 1)
        end = space if space >= 0 else end
    return f"{'…' if start else ''}{line[start:end].rstrip()}{'…' if end < len(line) else ''}"


def _passage(line: str, query: str, room: int) -> tuple[int, int]:
    """Where the words of the query are nearest together: the span with the most of them, each counted once."""
    wanted = list(dict.fromkeys(words(query).split()))[:MOST_WORDS]
    # Words that are alike begin alike.
    starts: dict[str, list[tuple[int, str]]] = {}
    for n, other in enumerate(wanted):
        starts.setdefault(other[:_BEGINNING], []).append((n, other))
    known: dict[str, int | None] = {}
    found: list[tuple[int, int, int]] = []
    for match in _WORD.finditer(line):
        word = match[0]
        if word not in known:
            folded = words(word).strip()
            near = starts.get(folded[:_BEGINNING], ())
            known[word] = next((n for n, other in near if _alike(folded, other)), None)
        which = known[word]
        if which is not None:
            found.append((match.start(), match.end(), which))
    # Long words say more than short ones, which every text is full of.
    weights = [min(len(word), _LONGEST_WORD) for word in wanted]
    counts = [0] * len(wanted)
    best, span, left, total = 0, (0, 0), 0, 0
    for start, end, which in found:
        total += 0 if counts[which] else weights[which]
        counts[which] += 1
        # Also what says nothing new: the span begins with the last of each word.
        while found[left][0] < start and (end - found[left][0] > room or counts[found[left][2]] > 1):
            counts[found[left][2]] -= 1
            total -= 0 if counts[found[left][2]] else weights[found[left][2]]
            left += 1
        if total > best and end - found[left][0] <= room:
            best, span = total, (found[left][0], end)
    return span


def _alike(word: str, other: str) -> bool:
    """Whether these are forms of one word, as far as their beginnings tell."""
    if word == other:
        return True
    shorter, longer = sorted((word, other), key=len)
    return (
        len(shorter) >= _BEGINNING
        and len(longer) - len(shorter) <= 3
        and longer.startswith(shorter[: max(_BEGINNING, len(shorter) - 1)])
    )
