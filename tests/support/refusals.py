"""The whole error that bytes are answered with, over each protocol."""

import base64
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlencode

from google.rpc import status_pb2
from pyqwest import HTTPVersion, SyncClient, SyncHTTPTransport

from tests.support.callers import Failure, detail_of
from tests.support.codes import GRPC_CODES
from tests.support.raw import envelope

_http1: Final = SyncClient(SyncHTTPTransport(http_version=HTTPVersion.HTTP1))
_http2: Final = SyncClient(SyncHTTPTransport(http_version=HTTPVersion.HTTP2))


@dataclass(frozen=True)
class Way:
    """A protocol with a codec."""

    name: str
    content_type: str
    """Empty for a GET."""
    is_json: bool = False
    http: int = 2
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def is_enveloped(self) -> bool:
        """Whether a message is sent in an envelope, as in gRPC and in streams."""
        return self.content_type.startswith(("application/grpc", "application/connect+"))


UNARY: Final = (
    Way("grpc", "application/grpc"),  # takes the fast path
    Way("grpc-asgi", "application/grpc", headers=(("grpc-encoding", ""),)),
    Way("grpc-json", "application/grpc+json", is_json=True),
    Way("grpc-web", "application/grpc-web+proto", http=1),
    Way("grpc-web-json", "application/grpc-web+json", is_json=True),
    Way("connect", "application/proto"),
    Way("connect-json", "application/json", is_json=True, http=1),
    Way("connect-json-http2", "application/json", is_json=True),
)
GETS: Final = (Way("get", ""), Way("get-json", "", is_json=True, http=1))
STREAMING: Final = (
    *(way for way in UNARY if way.is_enveloped),
    Way("connect-stream", "application/connect+proto"),
    Way("connect-stream-json", "application/connect+json", is_json=True),
)


def refusal(base_url: str, way: Way, path: str, message: bytes, *, zipped: bool = False) -> Failure:
    """Return the error that a method at ``path`` answers ``message`` with."""
    client = _http1 if way.http == 1 else _http2
    sent = gzip.compress(message) if zipped else message
    if not way.content_type:
        query = {"connect": "v1", "encoding": "json" if way.is_json else "proto", "base64": "1"}
        query |= {"message": base64.urlsafe_b64encode(sent).decode()}
        query |= {"compression": "gzip"} if zipped else {}
        response = client.get(f"{base_url}{path}?{urlencode(query)}", {})
        return _connect(json.loads(bytes(response.content)))
    headers = {"content-type": way.content_type, "te": "trailers"} | dict(way.headers)
    if zipped:
        headers["content-encoding" if not way.is_enveloped else _encoding(way)] = "gzip"
    body = envelope(sent, flags=int(zipped)) if way.is_enveloped else sent
    response = client.post(base_url + path, headers, body)
    content = bytes(response.content)
    if way.content_type.startswith("application/grpc-web"):
        assert content[0] == 0x80
        lines = content[5:].decode().splitlines()
        return _grpc(dict(line.split(": ", 1) for line in lines))
    if way.content_type.startswith("application/grpc"):
        assert not dict(response.trailers.items()), "the only HEADERS frame has the status"
        return _grpc(dict(response.headers.items()))
    return _connect(json.loads(content[5:])["error"] if way.is_enveloped else json.loads(content))


def _encoding(way: Way) -> str:
    return "grpc-encoding" if "grpc" in way.content_type else "connect-content-encoding"


def _grpc(trailers: Mapping[str, str]) -> Failure:
    status = status_pb2.Status.FromString(_decoded(trailers.get("grpc-status-details-bin", "")))
    return Failure(
        GRPC_CODES[int(trailers["grpc-status"])],
        unquote(trailers["grpc-message"]),
        tuple(detail_of(each.type_url, each.value) for each in status.details),
    )


def _connect(error: Mapping[str, object]) -> Failure:
    details = error.get("details", ())
    assert isinstance(details, list | tuple)
    return Failure(
        str(error["code"]),
        str(error["message"]),
        tuple(detail_of(each["type"], _decoded(each["value"])) for each in details),
    )


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))
