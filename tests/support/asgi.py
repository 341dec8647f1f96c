"""Requests to an ASGI application in this process, without a server."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Scope

RawHeaders = Sequence[tuple[bytes, bytes]]


@dataclass
class Sent:
    """What the application has sent."""

    messages: list[Message] = field(default_factory=list)

    @property
    def start(self) -> Message:
        """The message that begins the response."""
        return self.messages[0]

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.start["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        """The headers of the response."""
        return dict(self.start["headers"])

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(each.get("body", b"") for each in self.messages)

    @property
    def trailers(self) -> dict[bytes, bytes]:
        """The trailers."""
        ends = [each for each in self.messages if each["type"] == "http.response.trailers"]
        return dict(ends[-1]["headers"]) if ends else {}


async def request(  # noqa: PLR0913 - each has a name
    app: ASGIApp,
    path: str,
    *,
    content_type: str = "application/json",
    body: bytes = b"",
    method: str = "POST",
    query: bytes = b"",
    headers: RawHeaders = (),
    trailers: bool = True,
) -> Sent:
    """Send one request, whose client stays; ``trailers`` says whether the server can send them."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "2",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": [(b"content-type", content_type.encode()), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "extensions": {"http.response.trailers": {}} if trailers else {},
    }
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    sent = Sent()

    async def receive() -> Message:
        if unread:
            return unread.pop()
        return await asyncio.Future()

    async def send(message: Message) -> None:
        sent.messages.append(message)

    await app(scope, receive, send)
    return sent
