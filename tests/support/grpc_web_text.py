"""gRPC-Web in base64, sent and read as Google's grpc-web client does."""

import base64
from collections.abc import Generator, Iterator, Mapping
from typing import Final

import httpx

from tests.support.raw import envelope

CONTENT_TYPE: Final = "application/grpc-web-text"

_TRAILERS: Final = 0x80


def decoded(text: bytes) -> bytes:
    """Decode all complete groups of four characters, any of which may be padded."""
    groups = (text[at : at + 4] for at in range(0, len(text) // 4 * 4, 4))
    return b"".join(base64.b64decode(group, validate=True) for group in groups)


class StatusError(Exception):
    """The end of a call that has failed, with its trailers."""

    def __init__(self, trailers: Mapping[str, str]) -> None:
        super().__init__(trailers)
        self.trailers = trailers


class Reader:
    """Finds the frames in a response that arrives in chunks.

    As ``GrpcWebClientReadableStream`` of grpc-web 2.1: what has arrived is decoded up to the last
    group of four characters, and padding may end any group.
    """

    def __init__(self) -> None:
        self._text = b""
        self._frames = bytearray()

    def feed(self, text: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the flags and the payload of each frame that is complete."""
        self._text += text
        self._frames += decoded(self._text)
        self._text = self._text[len(self._text) // 4 * 4 :]
        while len(self._frames) >= 5:
            end = 5 + int.from_bytes(self._frames[1:5])
            if len(self._frames) < end:
                return
            yield self._frames[0], bytes(self._frames[5:end])
            del self._frames[:end]

    def end(self) -> None:
        """Check that nothing is left of a frame."""
        assert not self._text
        assert not self._frames


def messages(
    client: httpx.Client, path: str, message: bytes, headers: Mapping[str, str]
) -> Generator[bytes, None, None]:
    """Make a call, and yield the messages of its response. Raises StatusError."""
    sent = {"accept": CONTENT_TYPE, "x-grpc-web": "1", **headers, "content-type": CONTENT_TYPE}
    body = base64.b64encode(envelope(message))
    with client.stream("POST", path, content=body, headers=sent) as response:
        yield from read(response)


def read(response: httpx.Response) -> Iterator[bytes]:
    """Yield the messages of a response that is not read yet. Raises StatusError."""
    assert response.status_code == 200
    assert response.headers["content-type"].partition("+")[0] == CONTENT_TYPE
    trailers: Mapping[str, str] = response.headers  # where there is neither message nor trailers
    reader = Reader()
    for chunk in response.iter_raw():
        for flags, payload in reader.feed(chunk):
            if flags & _TRAILERS:
                lines = payload.decode().splitlines()
                trailers = dict(line.split(": ", 1) for line in lines)
            else:
                yield payload
    reader.end()
    if trailers["grpc-status"] != "0":
        raise StatusError(trailers)
