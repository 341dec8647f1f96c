"""The text of an error as the value of ``grpc-message``: percent-encoded UTF-8.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses (Percent-Encoded): the
bytes 0x20 to 0x7E stay as they are, except "%". Some clients show the text without decoding it.
"""

from typing import Final
from urllib.parse import unquote

_ESCAPED: Final = {
    byte: chr(byte) if 0x20 <= byte <= 0x7E and byte != ord("%") else f"%{byte:02X}"
    for byte in range(256)
}


def encode_message(text: str) -> bytes:
    """Return ``text`` as it is sent. A surrogate, which UTF-8 cannot have, becomes "?"."""
    return text.encode(errors="replace").decode("latin-1").translate(_ESCAPED).encode()


def decode_message(value: bytes) -> str:
    """Return the text of a ``grpc-message`` that any encoder has written."""
    return unquote(value.decode("latin-1"))
