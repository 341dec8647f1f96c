"""Origins of web pages, as ``LISTINGS_CORS_ORIGINS`` lists them and as browsers send them.

A browser sends scheme, host and port in one form only: in lower case, without the default port and
without a path. https://html.spec.whatwg.org/multipage/browsers.html#ascii-serialisation-of-an-origin
What it would never send is refused, with what to write instead.
"""

import re
from collections.abc import Collection
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

_ALL: Final = "*"
_BELOW: Final = "*."
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

# The last label has a letter: a host whose last label is a number is an IPv4 address.
_NAME: Final = re.compile(r"(?:[a-z0-9_-]+\.)*(?!\d+$)[a-z0-9_-]+")
_LABELS: Final = r"(?:[a-z0-9_-]+\.)+"


class Origins:
    """A set of origins: some, those of all subdomains of a host, or all that there are."""

    def __init__(self, entries: Collection[str]) -> None:
        """Take entries such as ``https://shop.example``, ``https://*.shop.example:8443`` or ``*``.

        ``*.`` stands for one label or more. Raises ValueError, which says what to write instead.
        """
        if _ALL in entries and len(entries) > 1:
            raise ValueError("* is every origin: expected it alone, or the others without it")
        self.has_all = _ALL in entries
        """Whether it has every origin."""
        self._patterns = [_pattern(each) for each in entries if each != _ALL]

    def __bool__(self) -> bool:
        """Whether it has an origin at all."""
        return self.has_all or bool(self._patterns)

    def __contains__(self, origin: str) -> bool:
        """Whether it has ``origin``, the value of the header of this name."""
        return self.has_all or any(each.fullmatch(origin) for each in self._patterns)


def _pattern(entry: str) -> re.Pattern[str]:
    """Return what matches the origins that an entry stands for."""
    scheme, host, port = _checked(entry)
    labels = _LABELS if host.startswith(_BELOW) else ""
    rest = re.escape(host.removeprefix(_BELOW) + port)
    return re.compile(f"{re.escape(scheme)}://{labels}{rest}")


def _checked(entry: str) -> tuple[str, str, str]:
    """Return scheme, host and, with its colon, port. Raises ValueError."""
    if "@" in entry:  # not quoted: a password may be before it
        raise ValueError("expected origins without user names and passwords, as in https://host")
    if entry == "null":
        raise ValueError(
            "null is the origin of files and of sandboxed pages of any site; "
            "expected https://host of a server that has the page"
        )
    try:
        url = urlsplit(entry)
        host, number = _host(url.hostname or ""), url.port
    except ValueError:
        host, number = None, None
    if host is None or url.scheme not in _DEFAULT_PORTS:
        raise ValueError(
            f"expected origins, https://host, https://host:port or, for its subdomains, "
            f"https://*.host, in ASCII and separated by commas, or * for all; got {entry!r}"
        )
    port = "" if number in (None, _DEFAULT_PORTS[url.scheme]) else f":{number}"
    written = f"{url.scheme}://{host}{port}"
    if entry != written:
        raise ValueError(
            f"expected {written} in place of {entry}: browsers send origins "
            "in lower case, without a path and without the default port"
        )
    return url.scheme, host, port


def _host(host: str) -> str | None:
    """Return ``host`` as browsers write it, None if it has a zone. Raises ValueError for others."""
    if _NAME.fullmatch(host.removeprefix(_BELOW)):
        return host
    if "%" in host:  # a zone, which ``ip_address`` takes and a URL has not
        return None
    address = ip_address(host)
    return f"[{address}]" if address.version == 6 else str(address)
