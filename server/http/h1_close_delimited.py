"""HTTP/1.0 responses whose end is that of the connection (RFC 9112, section 6.3)."""

from __future__ import annotations

from http import HTTPStatus


class CloseDelimited:
    """Takes the place of a ``zttp.H1Connection`` for the response of one request.

    Works around uvicorn and zttp, which send chunks where the length is not known; HTTP/1.0 has
    none.
    """

    def __init__(self) -> None:
        self._unsent = b""

    def send_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Begin the response, without the transfer coding that uvicorn adds."""
        lines = [b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode())]
        for name, value in headers:
            if name.lower() not in (b"transfer-encoding", b"connection"):
                lines.append(b"%b: %b" % (name, value))
        self._unsent += b"\r\n".join([*lines, b"connection: close", b"", b""])

    def send_data(self, data: bytes) -> None:
        """Go on with ``data``."""
        self._unsent += data

    def end_message(self) -> None:
        """End the response: nothing is sent."""

    def data_to_send(self) -> bytes:
        """Return what has not been returned yet."""
        unsent, self._unsent = self._unsent, b""
        return unsent

    def should_close(self) -> bool:
        """Whether the connection ends after the response."""
        return True
