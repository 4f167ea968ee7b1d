"""One short line for each way in which a request can fail. None shows the URL, so none shows credentials."""

from __future__ import annotations

import errno
import http
import os

import aiohttp
from aiohttp.http import HttpProcessingError

from unwait.web.errors import ClientError
from unwait.web.text import printable


def status_cause(status: int, reason: str | None) -> str:
    """`HTTP 404 Not Found`, with the standard phrase where the server sends none."""
    phrase = printable(reason or "")[:60]
    if not phrase:
        try:
            phrase = http.HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
    return f"HTTP {status} {phrase}".rstrip()


def cause(error: Exception) -> str:
    """What went wrong, in one line of printable characters without addresses of code."""
    match error:
        case ClientError():
            return error.cause
        case aiohttp.ClientConnectorCertificateError():
            inner = error.certificate_error
            return f"bad certificate: {getattr(inner, 'verify_message', '') or printable(str(inner))}"
        case aiohttp.ClientConnectorSSLError() | aiohttp.ClientSSLError():
            return f"TLS failure: {_reason(error.os_error)}"
        case aiohttp.ClientConnectorDNSError():
            return f"cannot resolve host {error.host!r}: {_reason(error.os_error)}"
        case aiohttp.ClientProxyConnectionError():
            return f"cannot connect to the proxy: {_reason(error.os_error)}"
        case aiohttp.ClientConnectorError():
            return f"cannot connect: {_reason(error.os_error)}"
        case aiohttp.ClientHttpProxyError():
            return f"the proxy refused: {status_cause(error.status, error.message)}"
        case aiohttp.ClientResponseError():
            return f"not a valid HTTP answer: {printable(error.message)[:80]}"
        case aiohttp.ServerDisconnectedError():
            return "connection closed before the answer"
        case HttpProcessingError():
            return f"not a valid HTTP answer: {printable(error.message)[:80]}"
        case OSError():
            return _reason(error)
        case _:
            return type(error).__name__


def _reason(error: BaseException) -> str:
    """The system's words for an error, without the numbers and paths around them."""
    if (reason := getattr(error, "reason", None)) and isinstance(reason, str):
        return printable(reason.replace("_", " ").lower())
    if isinstance(error, OSError):
        # aiohttp's own errors carry a number too, and better words.
        if error.errno in errno.errorcode and not isinstance(error, aiohttp.ClientError):
            return os.strerror(error.errno or 0)
        if error.strerror:
            return printable(error.strerror)[:120]
    return printable(str(error))[:120] or type(error).__name__
