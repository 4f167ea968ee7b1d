"""What an error says to the engine: ask for less, come back later; and its text without secrets."""

from __future__ import annotations

import math
import re

# A user name and password in a URL; a token after its scheme; a secret's name with its value; the well-known prefixes.
_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s\"'<>]*@")
_SCHEMES = re.compile(r"\b(bearer|basic|token)(\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_NAMED = re.compile(
    r"((?:api[_-]?key|access[_-]?token|auth[_-]?token|refresh[_-]?token|client[_-]?secret|secret|password|passwd|pwd"
    r"|token|signature|sig|session[_-]?id|(?<=[?&])key|x-amz-(?:signature|credential|security-token))"
    r"[\"']?\s*[=:]\s*[\"']?)(?!bearer\b|basic\b)[^\s&\"',;}<>]+",
    re.IGNORECASE,
)
# A scheme, which may be any word, and what follows it; pairs of names and values.
_HEADERS = re.compile(
    r"(authorization[\"']?\s*[=:]\s*[\"']?)(?!\*\*\*)(?:[a-z][\w.-]*[ \t]+)?[^\s&\"',;}<>]+"
    r"|(cookie[\"']?\s*[=:]\s*[\"']?)(?:[^\s=;,\"']{1,80}=[^\s;,\"']*(?:;[ \t]*)?)+",
    re.IGNORECASE,
)
_NAMES = ("key", "token", "secret", "pass", "pwd", "sig", "session", "auth", "cookie", "credential")
_SCRUBBED = 20_000  # characters of an error's text that are looked at: it may be a whole document
_PREFIXED = re.compile(
    r"\b(?:sk|pk|rk|ghp|gho|ghs|github_pat|glpat|xox[abprs]|hf)[-_][A-Za-z0-9_-]{8,}|\bAIza[\w-]{10,}"
)


class Overloaded(Exception):
    """To be raised by a function when the other side asks for less: it is retried, and limits yield.

    `retry_after` is the delay that the other side named, in seconds, if it did.
    """

    overloaded = True

    def __init__(self, message: str = "overloaded", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def retry_after(error: BaseException) -> float | None:
    """The seconds to wait that an error names in its attribute `retry_after`; None without a usable one."""
    delay = getattr(error, "retry_after", None)
    if isinstance(delay, int | float) and math.isfinite(delay) and delay >= 0:
        return float(delay)
    return None


def is_overload(error: BaseException) -> bool:
    """Whether an error means that the other side has too much to do: a time-out, or a true `overloaded`."""
    return isinstance(error, TimeoutError) or getattr(error, "overloaded", False) is True


def scrub(text: str) -> str:
    """The text with `***` for credentials in URLs, tokens, and values named as keys, secrets or passwords."""
    # Each pattern costs microseconds, and every key of a journal comes by here: first what is cheap to rule out.
    if "@" in text:
        text = _CREDENTIALS.sub("***@", text)
    low = text.lower()
    if ("=" in text or ":" in text) and any(word in low for word in _NAMES):
        text = _NAMED.sub(r"\1***", _HEADERS.sub(r"\1\2***", text))
    if "bearer" in low or "basic" in low or "token" in low:
        text = _SCHEMES.sub(r"\1\2***", text)
    return _PREFIXED.sub("***", text) if "-" in text or "_" in text or "AIza" in text else text


def describe(error: BaseException, longest: int = 300) -> str:
    """`ValueError: its text`, on one line, scrubbed, at most `longest` characters.

    Of an error that has its `cause` in an attribute, without what it happened to, that is the text: so causes can be
    counted.
    """
    try:
        cause = getattr(error, "cause", None)
        text = (cause if isinstance(cause, str) and cause else str(error))[:_SCRUBBED]
    except Exception:
        text = ""  # an error that cannot be shown
    text = " ".join(scrub(text).split())
    name = type(error).__name__
    return f"{name}: {text}"[:longest] if text else name
