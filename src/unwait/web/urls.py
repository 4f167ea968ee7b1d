"""What a URL may be, how it is shown without its credentials, and the file name that it gives a body."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import unquote

from yarl import URL

from unwait.web.errors import InvalidURL

__all__ = ["FileNames", "InvalidURL", "host", "is_secret", "parse", "redact"]

_LONGEST_STEM = 150  # bytes; leaves room for a counter and an extension below the usual 255
# In the query, and in the fragment, where sign-ins leave their tokens.
_PARAMETER = re.compile(r"(?<=[?&;#])([^?&;#=]+)=([^&;#]+)")
# A user name and password in a URL within a URL, in clear or encoded.
_INNER_USER = re.compile(r"(?i)((?::|%3a)(?:/|%2f){2})(?:(?!%2f|%3f|%23)[^/?#&\s])*(@|%40)")
_SECRET = re.compile(
    r"(?i)token|secret|passw|passphrase|\bpwd\b|signature|credential|cookie|api-?_?key|access-?_?key|auth(?!ors?(?:$|[^a-z]))|jwt"
    r"|(?:^|[-_.])(?:(?<!idempotency-)key|sig|sid)$|session_?id"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}")
_BAD_HOST = re.compile(r"[\x00-\x20\x7f\"<>\\^`{|}]")
_HOST = re.compile(r"[^:/?#]+://(?:[^/?#\\]*@)?([^/?#\\]*)")
_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,8}")


def parse(text: str) -> URL:
    """The http or https URL that the text is; `InvalidURL` otherwise."""
    problem: str | None = None
    try:
        url = URL(text)
    except ValueError:
        pass
    else:
        problem = _problem(url.scheme, url.raw_host, url.port)
        if problem is None:
            return url
    scheme, separator, _ = text.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        # What precedes the :// of another URL is not shown: it may hold anything.
        raise InvalidURL("not a URL: http:// or https:// is missing")
    if scheme.lower() not in ("http", "https"):
        raise InvalidURL(f"unsupported URL scheme {scheme!r}")
    raise InvalidURL(problem or "invalid URL: bad host or port")


@lru_cache(maxsize=1024)
def _problem(scheme: str, host: str | None, port: int | None) -> str | None:
    """What is wrong with a URL's beginning. A host is tried here rather than deep in a resolver's thread."""
    if scheme not in ("http", "https"):
        return f"unsupported URL scheme {scheme!r}"
    if not host:
        return "no host in the URL"
    if port == 0:
        return "invalid port in the URL"
    try:
        host.encode("idna")
        URL.build(scheme=scheme, host=host).host  # noqa: B018  # decodes it, as is done for proxies and files
    except ValueError:
        return "invalid URL: bad host or port"
    return "invalid URL: bad host or port" if _BAD_HOST.search(host) else None


def host(url: str) -> str:
    """The host of a URL, in lower case and with its port if one is given: a key for `Limits(per=host)`."""
    match = _HOST.match(url)
    return match[1].lower() if match else url


def redact(text: str) -> str:
    """The URL with `***` for a user name and password, and for the values in it that are named as secrets.

    A text that is no URL loses all before its last @.
    """
    if "@" in text:
        text = _without_user(text)
    if "@" in text or "%40" in text:
        text = _INNER_USER.sub(r"\1***\2", text)
    if "=" in text:
        text = _PARAMETER.sub(_without_secret, text)
    return text


def _without_user(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if not separator or "@" in scheme:
        scheme, separator, rest = "", "", text
    try:
        parse(text)
    except InvalidURL:
        end = rest.rfind("@")
    else:
        authority = re.match(r"[^/?#\\]*", rest)
        end = authority.group().rfind("@") if authority else -1
    return text if end < 0 else f"{scheme}{separator}***{rest[end:]}"


def _without_secret(parameter: re.Match[str]) -> str:
    name, value = parameter.groups()
    if not is_secret(unquote(name)):
        # A URL in a URL, in clear or encoded.
        inner = unquote(value)
        shown = _PARAMETER.sub(_without_secret, inner)
        if shown == inner:
            return parameter[0]
        if inner == value:
            return f"{name}={shown}"
    return f"{name}=***"


def is_secret(name: str) -> bool:
    """Whether a query parameter or a header of this name carries a secret."""
    return _SECRET.search(name) is not None


class FileNames:
    """File names for URLs: readable, safe in any directory, each given once and remembered."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

    def reserve(self, stem: str) -> None:
        """Let no URL have this one."""
        self._given.setdefault(stem, 1)

    def __call__(self, url: URL) -> tuple[str, str]:
        """The stem and the extension (with its dot; empty if the URL has none) for the body at this URL.

        The stem is made of ASCII letters, digits, `_`, `-` and `.`, begins with none of the last three,
        and is unlike every other.
        """
        path, extension = url.path, ""
        if (dot := path.rfind(".")) > path.rfind("/") + 1 and _EXTENSION.fullmatch(path[dot:]):
            path, extension = path[:dot], path[dot:]
        host = url.host or ""
        port = "" if url.is_default_port() else f"_{url.port}"
        query = f"_{url.query_string}" if url.query_string else ""
        stem = re.sub(r"(\.{2,}|[^\w.-])+", "_", f"{host}{port}{path}{query}", flags=re.ASCII)
        stem = stem[:_LONGEST_STEM].strip("._-") or "body"
        number = self._given.get(stem, 0) + 1
        unique = stem
        while number > 1 and (unique := f"{stem}-{number}") in self._given:
            number += 1
        self._given[stem] = number
        if unique != stem:
            self._given[unique] = 1
        return unique, extension
