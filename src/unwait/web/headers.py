"""What servers say in headers about when to come back and how much is left.

Nothing here raises, whatever a server sends: what cannot be read is as if it had not been sent. Moments are
taken relative to the server's own `Date` where it sends one, so that a wrong clock on either side does not
matter; `Date` is cut to whole seconds, which can only make a wait longer.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterator, Mapping

from unwait.flow.rates import Quota

LONGEST = 86400.0  # seconds; nothing that a server says makes a client wait longer

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_CLOCK = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_HTTP_DATES = (
    # Sun, 06 Nov 1994 08:49:37 GMT
    re.compile(rf"[a-z]{{3}}, (?P<day>[0-9]{{1,2}}) (?P<month>[a-z]{{3}}) (?P<year>[0-9]{{4}}) {_CLOCK} gmt"),
    # sunday, 06-Nov-94 08:49:37 GMT
    re.compile(rf"[a-z]{{3,9}}, (?P<day>[0-9]{{2}})-(?P<month>[a-z]{{3}})-(?P<year>[0-9]{{2}}) {_CLOCK} gmt"),
    # Sun Nov  6 08:49:37 1994
    re.compile(
        rf"[a-z]{{3}} (?P<month>[a-z]{{3}}) {{1,2}}(?P<day>[0-9]{{1,2}}) {_CLOCK} (?P<year>[0-9]{{4}})"
    ),
)
_INTERNET_DATE = re.compile(
    r"(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})[t ]"
    rf"{_CLOCK}(?:\.[0-9]+)?(?:z|(?P<sign>[+-])(?P<hours>[0-9]{{2}}):?(?P<minutes>[0-9]{{2}}))"
)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d)")
_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": LONGEST,
}
_COUNT = re.compile(r"\s*([0-9]{1,18})(?:\.[0-9]*)?\s*(?:[,;]|$)")
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_MEMBER = re.compile(rf"(?:[^,\"]|{_QUOTED})+")
_NAME = re.compile(rf"\s*({_QUOTED}|[^;]*)(.*)", re.DOTALL)
_PARAMETER = re.compile(rf";\s*([a-z]+)\s*=\s*({_QUOTED}|[^;\"]*)")
_LONGEST_VALUE = 2000  # characters; longer ones are not read

# A number from here on is a moment, not a wait: in seconds or in milliseconds of the Unix epoch.
_EPOCH_SECONDS = 1e9
_EPOCH_MILLISECONDS = 1e11

# Where the limit, what remains of it and its reset are found, the most specific first.
_REQUESTS = (
    "x-ratelimit-{}-requests",
    "anthropic-ratelimit-requests-{}",
    "ratelimit-{}",
    "x-ratelimit-{}",
    "x-rate-limit-{}",
)
_TOKENS = (
    "x-ratelimit-{}-tokens",
    "anthropic-ratelimit-tokens-{}",
    "anthropic-ratelimit-input-tokens-{}",
)


def http_date(text: str, now: float | None = None) -> float | None:
    """The moment that an HTTP date names, in seconds of the Unix epoch; None for what is no date in its three formats.

    A year of two digits is taken to be at most 50 years after `now` (default: the wall clock's time).
    """
    text = text.strip().lower()
    match = next((found for pattern in _HTTP_DATES if (found := pattern.fullmatch(text))), None)
    if match is None or match["month"] not in _MONTHS:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:
        this_year = time.gmtime(now).tm_year
        year += this_year - this_year % 100
        if year > this_year + 50:
            year -= 100
    return _moment(match, year, _MONTHS.index(match["month"]) + 1)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """The seconds to wait that `retry-after-ms` or else `Retry-After` names, from 0 to `LONGEST`; None without.

    `Retry-After` may be seconds, also with decimals, or an HTTP date. `now` is the wall clock's time (default: it is
    read).
    """
    found = _named(headers, "retry-after")
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (milliseconds := _number(found.get(name, ""))) is not None:
            return _bounded(milliseconds / 1000)
    text = found.get("retry-after", "")
    if (seconds := _number(text)) is not None:
        return _bounded(seconds)
    now = time.time() if now is None else now
    moment = http_date(text, now)
    return None if moment is None else _bounded(moment - _server_time(found, now))


def quotas(headers: Mapping[str, str], now: float | None = None) -> tuple[Quota | None, Quota | None]:
    """What remains of the server's limits on requests and on tokens; None where it does not say.

    Understood are `x-ratelimit-*`, `x-ratelimit-*-requests` and `-tokens`, `anthropic-ratelimit-*`, and the IETF
    drafts' `RateLimit` and `RateLimit-*`; resets in seconds, as moments of the Unix epoch, as durations (`1m30s`) and
    as dates. Of several policies in one `RateLimit`, the one with least remaining counts. `now` is the wall clock's
    time (default: it is read).
    """
    found = _named(headers, "limit")
    if not found.keys() - {"date"}:
        return None, None
    server_time = _server_time(found, time.time() if now is None else now)
    requests = _structured(found)
    return requests or _quota(found, _REQUESTS, server_time), _quota(found, _TOKENS, server_time)


def _named(headers: Mapping[str, str], part: str) -> dict[str, str]:
    """The headers with `part` in their name, and `Date`, by lower-case name; the first of each."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        name = name.lower()
        if (part in name or name == "date") and len(value) <= _LONGEST_VALUE:
            found.setdefault(name, value)
    return found


def _server_time(found: dict[str, str], now: float) -> float:
    date = http_date(found.get("date", ""), now)
    return now if date is None else date


def _quota(found: dict[str, str], families: tuple[str, ...], server_time: float) -> Quota | None:
    for family in families:
        remaining = _count(found.get(family.format("remaining"), ""))
        if remaining is not None:
            reset = _reset(found.get(family.format("reset"), ""), server_time)
            return Quota(_count(found.get(family.format("limit"), "")), remaining, reset)
    return None


def _structured(found: dict[str, str]) -> Quota | None:
    """The quota in `RateLimit: "name";r=50;t=5`, whose limit is `q` of that name in `RateLimit-Policy`, or in
    `RateLimit: limit=100, remaining=50, reset=5`, as an earlier draft has it."""
    policies = dict(_members(found.get("ratelimit-policy", "")))
    flat: dict[str, str] = {}
    said = [flat]
    for name, parameters in _members(found.get("ratelimit", "")):
        if "r" in parameters:
            limit = policies.get(name, {}).get("q", "")
            said.append({"limit": limit, "remaining": parameters["r"], "reset": parameters.get("t", "")})
        else:
            key, _, value = name.partition("=")
            flat[key] = value
    least: Quota | None = None
    for policy in said:
        remaining = _count(policy.get("remaining", ""))
        if remaining is not None and (least is None or remaining < (least.remaining or 0)):
            reset = _number(policy.get("reset", ""))
            least = Quota(
                _count(policy.get("limit", "")), remaining, None if reset is None else _bounded(reset)
            )
    return least


def _members(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The name and the parameters of each member of a list, without white space."""
    for member in _MEMBER.findall(text.lower()):
        name, rest = _NAME.findall(member)[0]
        parameters = {key: value.strip() for key, value in _PARAMETER.findall(rest)}
        yield re.sub(r"\s", "", name), parameters


def _count(text: str) -> int | None:
    """The number that the text begins with: more may follow it, as in `100, 100;w=60`."""
    match = _COUNT.match(text)
    return int(match[1]) if match else None


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def _reset(text: str, server_time: float) -> float | None:
    """The seconds to a reset: a number, a duration, or a moment in one of many forms."""
    text = text.strip().lower()
    if (number := _number(text)) is not None:
        if number < _EPOCH_SECONDS:
            return _bounded(number)
        return _bounded((number if number < _EPOCH_MILLISECONDS else number / 1000) - server_time)
    if (seconds := _duration(text)) is not None:
        return _bounded(seconds)
    moment = _internet_date(text)
    if moment is None:
        moment = http_date(text, server_time)
    return None if moment is None else _bounded(moment - server_time)


def _duration(text: str) -> float | None:
    """The seconds in `1h2m3.5s`, `120ms` and the like."""
    spans = list(_SPAN.finditer(text))
    if not spans or "".join(span[0] for span in spans) != text:
        return None
    return sum(float(span[1]) * _UNITS[span[2]] for span in spans)


def _internet_date(text: str) -> float | None:
    match = _INTERNET_DATE.fullmatch(text)
    moment = _moment(match, int(match["year"]), int(match["month"])) if match else None
    if match is None or moment is None or match["sign"] is None:
        return moment
    offset = int(match["hours"]) * 3600 + int(match["minutes"]) * 60
    return moment - offset if match["sign"] == "+" else moment + offset


def _moment(match: re.Match[str], year: int, month: int) -> float | None:
    """Seconds of the Unix epoch; a leap second is the one after it."""
    second = int(match["second"])
    leap = second == 60
    try:
        at = datetime.datetime(
            year,
            month,
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            second - leap,
            tzinfo=datetime.UTC,
        )
    except ValueError:
        return None
    return at.timestamp() + leap


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST)
