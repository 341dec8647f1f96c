"""Valid requests with some changes: of the message, of frames, or of any byte."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from tests.support.hostile_requests import Known, name, protocols
from tests.support.http2 import PING
from tests.support.mutations import mutated
from tests.support.raw import PREFACE, frame
from tests.support.recorded import recorded
from tests.support.requests import Header, Protocol, Request

_STREAM_IDS: Final = (0, 1, 2, 3, 5, 7, 99, 2**31 - 1, 2**31, 2**32 - 1)
_LENGTHS: Final = (0, 1, 4, 5, 8, 100, 16_384, 16_385, 2**24 - 1)

# Frames that a server answers at once, whatever precedes them. The first of them may be parsed as
# a part of the bytes before it.
_PINGS: Final = frame(PING, payload=bytes(8)) * 3


class Changes:
    """Makes changed requests from the recorded ones of each method and protocol."""

    def __init__(self, known: Known) -> None:
        self._credentials = known.credentials
        self._messages = [
            (name(method), protocol, json if protocol.is_json else binary)
            for method, binary, json in recorded(known)
            for protocol in protocols(method)
        ]
        requests = [_request(*each, known.credentials[0]) for each in self._messages]
        self._http1 = [each for each in requests if each.http == 1]
        self._http2 = [each for each in requests if each.http == 2]

    def message(self, random: Random) -> Request:
        """Return a request in which only the message is changed."""
        method, protocol, message = random.choice(self._messages)
        other = random.choice(self._messages)[2]
        credentials = random.choice(self._credentials)
        return _request(method, protocol, mutated(random, message, [other]), credentials)

    def http1(self, random: Random) -> tuple[str, bytes]:
        """Return one or more requests of HTTP/1.1, changed, and the method of the first."""
        requests = random.choices(self._http1, k=random.choice((1, 1, 2, 3)))
        other = random.choice(self._http1)
        sent = b"".join(random.choice((each.http1, each.chunked))() for each in requests)
        return requests[0].method, mutated(random, sent, [other.http1()])

    def http2(self, random: Random) -> tuple[str, bytes]:
        """Return one or more requests of HTTP/2, changed, and the method of the first."""
        requests = random.choices(self._http2, k=random.choice((1, 1, 2, 3)))
        sent = [PREFACE]
        for number, request in enumerate(requests):
            sent += request.http2(2 * number + 1)
        for _ in range(random.randint(0, 3)):
            random.choice(_FRAME_CHANGES)(random, sent)
        if random.random() < 0.5:
            at = random.randrange(len(sent))
            sent[at] = mutated(random, sent[at], sent)
        return requests[0].method, b"".join(sent) + _PINGS


def _request(
    method: str, protocol: Protocol, message: bytes, credentials: tuple[Header, ...]
) -> Request:
    return protocol.request(method, message, protocol.deadline, *credentials)


def _drop(random: Random, sent: list[bytes]) -> None:
    sent[random.randrange(len(sent))] = b""


def _double(random: Random, sent: list[bytes]) -> None:
    at = random.randrange(len(sent))
    sent.insert(at, sent[at])


def _disorder(random: Random, sent: list[bytes]) -> None:
    frames = sent[1:]
    random.shuffle(frames)
    sent[1:] = frames


def _insert(random: Random, sent: list[bytes]) -> None:
    """Insert a frame of any type."""
    payload = random.randbytes(random.choice(_LENGTHS[:-3]))
    kind, flags = random.randrange(12), random.choice((0, 1, 4, 5, 8, 0x20, 0xFF))
    sent.insert(random.randint(1, len(sent)), frame(kind, flags, _stream_id(random), payload))


def _relabel(random: Random, sent: list[bytes]) -> None:
    """Change the header of one frame."""
    at = random.randrange(len(sent))
    head = bytearray(sent[at][:9])
    match random.randrange(4):
        case 0:
            head[:3] = random.choice(_LENGTHS).to_bytes(3)
        case 1:
            head[3:4] = random.randrange(12).to_bytes(1)
        case 2:
            head[4:5] = random.randbytes(1)
        case 3:
            head[5:9] = _stream_id(random).to_bytes(4)
    sent[at] = bytes(head) + sent[at][9:]


def _refill(random: Random, sent: list[bytes]) -> None:
    """Replace a frame's payload by random bytes; in HEADERS, that is HPACK."""
    at = random.randrange(len(sent))
    sent[at] = sent[at][:9] + random.randbytes(len(sent[at][9:]))


def _stream_id(random: Random) -> int:
    return random.choice(_STREAM_IDS)


_FRAME_CHANGES: Final[Sequence[Callable[[Random, list[bytes]], None]]] = (
    _drop,
    _double,
    _disorder,
    _insert,
    _relabel,
    _refill,
)
