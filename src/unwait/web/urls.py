"""What a URL may be, how it is shown without its credentials, and the file name that it gives a body."""

from __future__ import annotations

import re

from yarl import URL

_LONGEST_STEM = 150  # bytes; leaves room for a counter and an extension below the usual 255
_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,8}")


class InvalidURL(ValueError):
    """The text is not a URL that can be fetched; the message says why and shows no credentials."""


def parse(text: str) -> URL:
    """The http or https URL that the text is; `InvalidURL` otherwise."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        raise InvalidURL("not a URL: http:// or https:// is missing")
    if scheme.lower() not in ("http", "https"):
        raise InvalidURL(f"unsupported URL scheme {scheme!r}")
    try:
        url = URL(text)
        if url.host and url.port != 0:
            # Raises here rather than deep in a resolver's thread.
            url.host.encode("idna")
            return url
    except ValueError:
        pass
    else:
        raise InvalidURL("no host in the URL" if not url.host else "invalid port in the URL")
    raise InvalidURL("invalid URL: bad host or port")


def redact(text: str) -> str:
    """The URL with `***` for a user name and password; a text that is no URL loses all before its last @."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    try:
        parse(text)
    except InvalidURL:
        end = rest.rfind("@")
    else:
        authority = re.match(r"[^/?#\\]*", rest)
        end = authority.group().rfind("@") if authority else -1
    return text if end < 0 else f"{scheme}{separator}***{rest[end:]}"


class FileNames:
    """File names for URLs: readable, safe in any directory, each given once and remembered."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

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
