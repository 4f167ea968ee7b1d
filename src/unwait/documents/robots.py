"""robots.txt (RFC 9309): what a site asks of those who crawl it. No I/O here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_to_bytes

AGENT = "unwait"
LONGEST = 512 << 10  # bytes that are read; more than the 500 KiB that the standard asks for
_LONGEST_DELAY = 86_400.0
_UNRESERVED = re.compile(r"%(2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aAeE])")
_LINE_ENDS = re.compile(r"\r\n|\r|\n")


@dataclass(slots=True)
class Robots:
    """What is asked of one crawler. `delay` is in seconds, None without one."""

    rules: list[tuple[str, bool]] = field(default_factory=list)
    delay: float | None = None

    def allows(self, target: str) -> bool:
        """Whether this path, with its query, may be asked for. The longest rule that matches decides."""
        target = _normal(target)
        if target == "/robots.txt":
            return True
        best, verdict = -1, True
        for pattern, allowed in self.rules:
            longer = len(pattern) > best or (len(pattern) == best and allowed)
            if longer and _matches(pattern, target):
                best, verdict = len(pattern), allowed
        return verdict


def parse(content: bytes, agent: str = AGENT) -> Robots:
    """What the file asks of the crawler of this product token: of all groups that name it, or else of those for `*`."""
    text = content[:LONGEST].decode("utf-8", "replace").removeprefix("\N{BOM}")
    own, others = Robots(), Robots()
    named = False
    # The groups that the lines now read belong to, and whether the next User-agent begins another group.
    current: list[Robots] = []
    in_rules = True
    for line in _LINE_ENDS.split(text):
        name, colon, value = line.partition("#")[0].partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon:
            continue
        if name == "user-agent":
            if in_rules:
                current, in_rules = [], False
            token = re.match(r"\*|[A-Za-z_-]*", value)
            if token and token[0] == "*":
                current.append(others)
            elif token and token[0].lower() == agent.lower():
                named = True
                current.append(own)
        elif name in ("allow", "disallow"):
            in_rules = True
            if value:
                for group in current:
                    group.rules.append((_normal(value), name == "allow"))
        elif name == "crawl-delay":
            in_rules = True
            if (delay := _delay(value)) is not None:
                for group in current:
                    group.delay = delay
    return own if named else others


def _delay(value: str) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return min(seconds, _LONGEST_DELAY) if math.isfinite(seconds) and seconds >= 0 else None


def _normal(path: str) -> str:
    """One spelling for all that mean the same: what need not be encoded is not, the rest is, in capitals."""
    path = _UNRESERVED.sub(lambda match: unquote_to_bytes(match[0]).decode("ascii"), path)
    path = quote(path, safe="%/:?#[]@!$&'()*+,;=-._~")
    return re.sub(r"%[0-9a-f]{2}", lambda match: match[0].upper(), path, flags=re.IGNORECASE)


def _matches(pattern: str, target: str) -> bool:
    # By finding one piece after the other, which takes linear time whatever a site asks for.
    ends = pattern.endswith("$")
    first, *pieces = pattern.removesuffix("$").split("*")
    if not target.startswith(first):
        return False
    position = len(first)
    if not pieces:
        return not ends or position == len(target)
    *middle, last = pieces
    for piece in middle:
        position = target.find(piece, position)
        if position < 0:
            return False
        position += len(piece)
    if ends:
        return len(target) - len(last) >= position and target.endswith(last)
    return target.find(last, position) >= 0
