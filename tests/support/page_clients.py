"""Clients of the service in a page: ``tests/clients/browser/src/page.ts``, called from tests."""

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, Queue
from types import MappingProxyType
from typing import Any, Final

from protobuf import Message

from server.gen.google.rpc import error_details_pb
from server.gen.listings.v1.orders_pb import WatchOrderPaymentsRequest, WatchOrderPaymentsResponse
from tests.support.callers import Failure, response_type
from tests.support.chromium import Page

CONNECT: Final = (
    "connect-web-connect-binary",
    "connect-web-connect-json",
    "connect-web-connect-get",
)
GRPC_WEB: Final = ("connect-web-grpc-web-binary", "connect-web-grpc-web-json")
GOOGLE: Final = ("grpc-web-text", "grpc-web-binary")

_SECONDS: Final = 20
_NONE: Final[Mapping[str, str]] = MappingProxyType({})


class PageClient:
    """One client of the page, for one service."""

    _numbers = itertools.count(1)

    def __init__(self, page: Page, name: str, base_url: str) -> None:
        self.row = _row(name)
        """In the table of docs/clients.md."""
        self._page = page
        self._to = (name, base_url)
        self._streams: dict[int, Queue[dict[str, Any]]] = {}
        page.expose("report", lambda stream, report: self._streams[stream].put(report))

    def __call__(
        self,
        request: Message[Any],
        headers: Mapping[str, str] = _NONE,
        *,
        timeout_ms: int | None = None,
    ) -> Any:
        """Send ``request`` to the method that takes it, and return its response.

        Raises Failure.
        """
        method = type(request).__name__.removesuffix("Request")
        options: dict[str, object] = {"headers": dict(headers)}
        if timeout_ms is not None:
            options["timeout"] = timeout_ms
        answer = self._page.evaluate("unary", *self._to, method, _json(request), options)
        if "failure" in answer:
            raise _failure(answer["failure"])
        return response_type(request).from_json(json.dumps(answer["message"]))

    @contextmanager
    def watch(
        self, request: WatchOrderPaymentsRequest, headers: Mapping[str, str] = _NONE
    ) -> Iterator[Iterator[WatchOrderPaymentsResponse]]:
        """Begin to watch. The stream raises Failure; the end of the context cancels it."""
        number = next(self._numbers)
        reports = self._streams[number] = Queue()
        self._page.evaluate("watch", number, *self._to, _json(request), {"headers": dict(headers)})
        yield _messages(reports)
        self._page.evaluate("cancel", number)

    def received(self) -> int:
        """Return how many messages of streams have come and were not read."""
        return sum(reports.qsize() for reports in self._streams.values())


def _row(name: str) -> str:
    if name in CONNECT:
        return "connect-web (Connect)"
    if name in GRPC_WEB:
        return "connect-web (gRPC-Web)"
    library, _, encoding = name.rpartition("-")
    return f"{library} ({encoding})"


def _messages(reports: "Queue[dict[str, Any]]") -> Iterator[WatchOrderPaymentsResponse]:
    while True:
        try:
            report = reports.get(timeout=_SECONDS)
        except Empty:
            raise AssertionError(f"the page received nothing in {_SECONDS} s") from None
        if "message" in report:
            yield WatchOrderPaymentsResponse.from_json(json.dumps(report["message"]))
        elif "failure" in report:
            raise _failure(report["failure"])
        else:
            return


def _failure(failed: dict[str, Any]) -> Failure:
    details = tuple(
        getattr(error_details_pb, each["type"].removeprefix("google.rpc.")).from_json(
            json.dumps(each["value"])
        )
        for each in failed["details"]
    )
    return Failure(failed["code"], failed["message"], details)


def _json(message: Message[Any]) -> Any:
    return json.loads(message.to_json())
