"""What the usual environment variables say: which proxy leads to a URL, and which authorities are trusted.

Read once, when a client starts. `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` count in both cases, lower
case first; `HTTP_PROXY` is ignored where `REQUEST_METHOD` is set, because a CGI server makes it from a request's
`Proxy:` header. `REQUESTS_CA_BUNDLE` or `CURL_CA_BUNDLE` name a file or directory of authorities, `SSL_CERT_FILE`
and `SSL_CERT_DIR` OpenSSL's; the first one set replaces the system's. `.netrc` is not read: nobody asked for its
passwords to be sent.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from yarl import URL

from unwait.web.errors import ConnectionFailed

_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy's address, without credentials, and the `Proxy-Authorization` that it wants, if any."""

    url: URL
    authorization: str | None


def basic(user: str | None, password: str | None) -> str:
    """The value of an `Authorization` header for a user name and password."""
    return "Basic " + base64.b64encode(f"{user or ''}:{password or ''}".encode()).decode()


class Environment:
    """Proxies and authorities as the variables name them."""

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self._variables = dict(os.environ if variables is None else variables)
        self._proxies = {scheme: self._variable(f"{scheme}_proxy") for scheme in ("http", "https", "all")}
        names = (name.strip().lower() for name in self._variable("no_proxy").split(","))
        self._direct = [name for name in names if name]
        self._tls: ssl.SSLContext | None = None

    def _variable(self, name: str) -> str:
        upper = name.upper()
        if name == "http_proxy" and "REQUEST_METHOD" in self._variables:
            upper = name
        return self._variables.get(name, self._variables.get(upper, "")).strip()

    def proxy(self, url: URL) -> Proxy | None:
        """The proxy for `url`; None to connect directly. Raises `ConnectionFailed` for one that cannot be used."""
        address = self._proxies[url.scheme] or self._proxies["all"]
        if not address or self._is_direct(url):
            return None
        try:
            proxy = URL(address if "://" in address else f"http://{address}")
        except ValueError:
            proxy = URL()
        if proxy.scheme not in ("http", "https") or not proxy.host:
            what = "is no URL" if not proxy.scheme else f"has the unsupported scheme {proxy.scheme!r}"
            raise ConnectionFailed(f"the proxy that the environment names for {url.scheme} {what}")
        authorization = None
        if proxy.raw_user is not None or proxy.raw_password is not None:
            authorization = basic(proxy.user, proxy.password)
        return Proxy(proxy.origin(), authorization)

    def _is_direct(self, url: URL) -> bool:
        host = (url.host or "").lower().rstrip(".")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            address = None
        for name in self._direct:
            if (
                name == "*"
                or name.strip("[]") == host
                or name in (f"{host}:{url.port}", f"[{host}]:{url.port}")
            ):
                return True
            if address is None:
                if f".{host}".endswith(f".{name.removeprefix('*').lstrip('.')}"):
                    return True
            elif "/" in name:
                try:
                    if address in ipaddress.ip_network(name, strict=False):
                        return True
                except ValueError:
                    continue
        return False

    def tls(self) -> ssl.SSLContext:
        """The context that verifies servers. Raises `ConnectionFailed` where a variable names nothing readable."""
        if self._tls is None:
            name = next((name for name in _BUNDLES if self._variables.get(name)), None)
            if name is None:
                context = ssl.create_default_context()
            else:
                path = self._variables[name]
                try:
                    # OpenSSL itself would say nothing of a file that is not there, and trust nobody.
                    if os.path.isdir(path):
                        context = ssl.create_default_context(capath=path)
                    else:
                        context = ssl.create_default_context(cafile=path)
                except (OSError, ssl.SSLError) as error:
                    cause = f"{name} names no readable certificates: {error.strerror or 'not in PEM format'}"
                    raise ConnectionFailed(cause, hint="correct it or unset it") from None
            context.set_alpn_protocols(["http/1.1"])
            self._tls = context
        return self._tls
