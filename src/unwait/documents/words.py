"""The words of a text, as both stores index them and a query is made of them: the same words, hence the same ranking.

A word is letters and digits, without case and accents. Chinese and Japanese put nothing between words: there, each
character is one, and of a query two neighbours are looked for together.

What a text's words are must not change with the version of Python, as SQLite's index is told what to forget in the
words that it was told: hence the Unicode 3.2 that every Python has beside its own. What that did not know yet is a
letter, or, where emoji are, a word.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from unicodedata import ucd_3_2_0 as unicode

MOST_WORDS = 64  # of a query
# Ranking costs time for each chunk that has a word, and again for the next word: what the most common words of a query
# would add to that is little, as they tell the chunks apart the least.
_MOST_MATCHES = 5000
_SHARE_OF_MATCHES = 0.22
# They drown a question in what is no answer; in a few keywords ("with statement") they may be what is asked for.
_KEYWORDS = 3
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
a about am an and any are as at be been being but by can could did do does doing for from had has have having he her him
his how i if in into is it its just me my no not of on or our she should so some such than that the their them then
there these they this those to too us very was we were what when where which who whom why will with would you your
""",
    )
)
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHARACTER = re.compile(f"[{UNSPACED}]")
_EMOJI = range(0x1F000, 0x20000)
_TAGS = range(0xE0000, 0xE1000)
_ZERO_WIDTH_SPACE = 0x200B
_SOFT_HYPHEN = 0xAD
_MOST_KNOWN = 50_000  # characters: what a text of any languages has of them


def words(text: str) -> str:
    """The words of the text in their order, with blanks between them."""
    return text.translate(_FOLDED)


def is_character(word: str) -> bool:
    """Whether it is one of a language that puts nothing between words."""
    return len(word) == 1 and _CHARACTER.match(word) is not None


def terms(query: str) -> list[tuple[str, ...]]:
    """What to look for: words, and neighbours that stand together; each once, and not too many."""
    found: dict[tuple[str, ...], None] = {}
    for unspaced, group in itertools.groupby(words(query).split(), is_character):
        run = list(group)
        if unspaced and len(run) > 1:
            found.update(dict.fromkeys(itertools.pairwise(run)))
        else:
            found.update(((word,), None) for word in run)
    telling = list(found)
    if len(found) > _KEYWORDS:
        telling = [term for term in telling if term[0] not in _STOP_WORDS] or telling
    return telling[:MOST_WORDS]


def most_matches(chunks: int) -> int:
    """In how many chunks the words of a query may be, together, for all of them to be ranked."""
    return max(_MOST_MATCHES, int(chunks * _SHARE_OF_MATCHES))


def rarest(terms: Sequence[tuple[str, ...]], counts: Sequence[int], most: int) -> list[int]:
    """Which of these terms are to be ranked, by place: the rarest, and as many as are in at most so many chunks.

    `counts` says in how many each is; above `most`, which is of no interest. Of those, the longest does for the rarest.
    """
    ranked = sorted(
        (min(count, most + 1), -len("".join(term)), place)
        for place, (term, count) in enumerate(zip(terms, counts, strict=True))
        if count
    )
    chosen: list[int] = []
    total = 0
    for count, _, place in ranked:
        if total and total + count > most:
            break
        chosen.append(place)
        total += count
    return sorted(chosen)


class _Folded(dict[int, str]):
    """What becomes of each character."""

    def __missing__(self, code: int) -> str:
        folded = _folded(code)
        if len(self) < _MOST_KNOWN:
            self[code] = folded
        return folded


def _folded(code: int) -> str:
    character = chr(code)
    category = unicode.category(character)
    if code == _SOFT_HYPHEN or code in _TAGS:
        return ""
    if category == "Cn":
        return f" {character} " if code in _EMOJI or is_character(character) else character
    if code == _ZERO_WIDTH_SPACE or category == "Cs":
        return " "
    composed = unicode.normalize("NFKC", character)
    if is_character(composed) and unicode.category(composed)[0] == "L":
        # Their marks are no accents.
        return f" {composed} "
    decomposed = unicode.normalize("NFKD", unicode.normalize("NFKD", character).casefold())
    return "".join(map(_part, decomposed))


def _part(character: str) -> str:
    category = unicode.category(character)
    # What joins, marks or hides is no end of a word.
    if (
        unicode.combining(character)
        or category in ("Cf", "Me")
        or "\ufe00" <= character <= "\ufe0f"
        or category == "Cn"
    ):
        return ""
    if category[0] not in "LNM":
        return " "
    return f" {character} " if is_character(character) else character


# That of German capitals came after Unicode 3.2.
_FOLDED = _Folded({0x1E9E: "ss"})
