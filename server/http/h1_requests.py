"""What RFC 9112 asks of an HTTP/1.1 request, and the answer to one that does not comply.

Works around zttp, which takes any value of Host, transfer codings before ``chunked`` and targets of
any form, and around uvicorn, which answers what zttp refuses with "Invalid HTTP request received."
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

# zttp's limits, which cannot be set.
MAX_LINE: Final = 16_383
"""Bytes of the request line, and of each header field."""
MAX_HEAD: Final = 65_536
"""Bytes of all of them."""
MAX_FIELDS: Final = 100

# RFC 3986, sections 3.2.2 and 3.2.3
_HOST: Final = rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::\d{0,5})?"
_VALID_HOST: Final = re.compile(_HOST, re.ASCII)
_ABSOLUTE_FORM: Final = re.compile(rb"(?i:https?)://(" + _HOST + rb")(/.*)?", re.ASCII | re.DOTALL)

_HOST_FIELD: Final = re.compile(rb"(?im)^host[ \t]*:")
_TRANSFER_CODINGS: Final = re.compile(rb"(?im)^transfer-encoding:([^\r\n]*)")
_TLS_HANDSHAKE: Final = b"\x16\x03"


class Refusal(NamedTuple):
    """An answer that ends the connection."""

    status: int
    message: str

    @property
    def body(self) -> bytes:
        """The message as a text."""
        return f"{self.message}\n".encode()

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Header fields, besides those that belong to every response."""
        return [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(self.body)),
            (b"connection", b"close"),
        ]

    def response(self, default_headers: list[tuple[bytes, bytes]], *, with_body: bool) -> bytes:
        """Return it as bytes; ``with_body`` is False for a response to HEAD."""
        phrase = HTTPStatus(self.status).phrase.encode()
        lines = [b"HTTP/1.1 %d %b" % (self.status, phrase)]
        lines += [b"%b: %b" % field for field in (*default_headers, *self.headers)]
        return b"\r\n".join([*lines, b"", self.body if with_body else b""])


_TARGET: Final = Refusal(
    400,
    "the target of the request is neither a path nor the URL of one, as in /readyz or "
    "http://host/readyz (RFC 9112, section 3.2)",
)
_HOST_COUNT: Final = Refusal(
    400, "Host is missing, or there more than once; send it once (RFC 9112, section 3.2)"
)
_HOST_VALUE: Final = Refusal(
    400, "Host is neither a name nor an address, with or without a port (RFC 9112, section 3.2)"
)
_TRANSFER_CODING: Final = Refusal(
    501, "the only transfer coding that is understood is chunked (RFC 9112, section 6.1)"
)
_NO_TRANSFER_CODING: Final = Refusal(
    400,
    "HTTP/1.0 has no Transfer-Encoding; send Content-Length, or HTTP/1.1 (RFC 9112, section 6.1)",
)
_NOT_ASCII: Final = Refusal(400, "the target of the request is not ASCII (RFC 9112, section 3.2)")
_TLS: Final = Refusal(400, "a TLS handshake came where HTTP without TLS is spoken; use http://")

# By what zttp raises.
_SYNTAX: Final = {
    "malformed request/status line": Refusal(
        400, "the request line is not as in GET /readyz HTTP/1.1 (RFC 9112, section 3)"
    ),
    "malformed header field": Refusal(
        400, "a header field is not as in Name: value (RFC 9112, section 5)"
    ),
    "ambiguous or conflicting message framing": Refusal(
        400,
        "Content-Length and Transfer-Encoding do not say how long the body is; send one of them, "
        "once (RFC 9112, section 6)",
    ),
    "malformed chunked encoding": Refusal(
        400, "a chunk is not its size in hexadecimal and that many bytes (RFC 9112, section 7.1)"
    ),
    "message exceeded configured size limit": Refusal(
        431,
        f"the head of the request is too large: the request line and each field may have "
        f"{MAX_LINE} bytes, all together {MAX_HEAD}, and there may be {MAX_FIELDS} fields",
    ),
}


def check(scope: dict[str, Any]) -> Refusal | None:
    """Return what is wrong with a request that zttp has parsed, or None.

    A target in absolute form becomes a path, and its authority takes the place of Host (RFC 9112,
    section 3.2.2).
    """
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) > 1:
        return _HOST_COUNT
    if hosts and not _VALID_HOST.fullmatch(hosts[0]):
        return _HOST_VALUE
    codings = [value for name, value in scope["headers"] if name == b"transfer-encoding"]
    if codings and scope["http_version"] == "1.0":
        return _NO_TRANSFER_CODING
    if any(coding.lower() != b"chunked" for coding in codings):
        return _TRANSFER_CODING
    return _check_target(scope)


def _check_target(scope: dict[str, Any]) -> Refusal | None:
    """Return what is wrong with the target; make a path of one in absolute form."""
    target = scope["raw_path"]
    if (
        target.startswith(b"/")
        or scope["method"] == "CONNECT"
        or (target == b"*" and scope["method"] == "OPTIONS")
    ):
        return None
    absolute = _ABSOLUTE_FORM.fullmatch(target)
    if absolute is None or not absolute[1]:
        return _TARGET
    prefix = absolute.start(2) if absolute[2] else len(target)
    scope["raw_path"] = target[prefix:] or b"/"
    scope["path"] = unquote(scope["raw_path"].decode("ascii"))
    others = [field for field in scope["headers"] if field[0] != b"host"]
    scope["headers"] = [(b"host", absolute[1]), *others]
    return None


def explain(error: BaseException | None, head: bytes) -> Refusal:
    """Return what is wrong with a request that zttp or uvicorn has refused with ``error``.

    ``head`` is what was received of its head, or the bytes that came in place of one.
    """
    if isinstance(error, UnicodeDecodeError):
        return _NOT_ASCII
    refusal = _SYNTAX.get(str(error), Refusal(400, f"the request is malformed: {error}"))
    if head.startswith(_TLS_HANDSHAKE):
        return _TLS
    if refusal is _SYNTAX["malformed header field"]:
        hosts = len(_HOST_FIELD.findall(head))
        if hosts > 1 or (hosts == 0 and b" HTTP/1.1\r\n" in head):
            return _HOST_COUNT
    if refusal is _SYNTAX["ambiguous or conflicting message framing"]:
        codings = b",".join(_TRANSFER_CODINGS.findall(head)).lower().split(b",")
        if any(coding.strip() not in (b"", b"chunked") for coding in codings):
            return _TRANSFER_CODING
    return refusal
