"""Where a peer is, and what may be told to it: its URL, its certificate, the way to it."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import httpx

from loopcore.errors import ConfigError
from loopcore.http.meaning import redacted
from loopcore.options import Secret

_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "x-api-key", "x-auth-token"})


def peer(url: str, *, secret: bool, insecure: bool) -> httpx.URL:
    """The URL, checked.

    Args:
        url: As the operator wrote it.
        secret: Requests will carry secrets.
        insecure: They may go over plain http to another machine.

    Raises:
        ConfigError: It is none, holds credentials, or a secret would go over plain http.
    """
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise ConfigError(f"{redacted(url)!r} is not a URL: {exc}", key="url") from None
    if found.scheme not in {"http", "https"} or not found.host:
        raise ConfigError(f"expected an http or https URL, got {redacted(url)!r}", key="url")
    if found.userinfo:
        raise ConfigError(f"{redacted(url)} holds credentials; use the options for secrets", key="url")
    if secret and found.scheme == "http" and not insecure and not is_loopback(found.host):
        raise ConfigError(f"a secret would go to {redacted(url)} unencrypted; use https, or set insecure", key="url")
    return found


def tls(url: str | httpx.URL, ca: Path | None) -> ssl.SSLContext:
    """The context for a peer: certificates and host names are verified, against `ca` if it is given.

    Raises:
        ConfigError: The file holds no certificates.
    """
    if httpx.URL(url).scheme in {"http", "ws"}:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, and costs no reading of certificates
    if ca is None:
        return httpx.create_ssl_context()
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"cannot read certificates from {ca}: {exc.strerror or exc}", key="ca") from exc


def is_secret(name: str, value: str | Secret) -> bool:
    """Whether a header must not show."""
    return isinstance(value, Secret) or name.lower() in _SECRET_HEADERS


def plain(name: str, value: str | Secret) -> str:
    """The value of a header.

    Raises:
        ConfigError: It has characters that no header can hold.
    """
    text = value.reveal() if isinstance(value, Secret) else value
    if not (text.isascii() and text.isprintable()):
        raise ConfigError(f"the value for the header {name} has characters that no header can hold", key="headers")
    return text


def is_loopback(host: str) -> bool:
    """Whether this host is this machine, whatever a name server says."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_proxied(url: httpx.URL) -> bool:
    """Whether the environment names a proxy for this URL."""
    return not {url.scheme, "all"}.isdisjoint(getproxies()) and not proxy_bypass(url.host)
