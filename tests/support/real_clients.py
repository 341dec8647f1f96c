"""The libraries that clients of the service are written with, as they are by default.

Those of Go and Node run in a process, which is a program of tests/clients; those of Python run in
a thread.
"""

import asyncio
import json
import queue
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
from connectrpc.errors import ConnectError
from connectrpc.protocol import ProtocolType
from protobuf import Message
from pyqwest import Client as HTTPClient
from pyqwest import HTTPTransport, HTTPVersion

from server.gen.google.rpc import error_details_pb
from server.gen.listings.v1.orders_connect import OrderServiceClient
from tests.support import client_programs
from tests.support.callers import (
    Failure,
    connect_failure,
    grpc_failure,
    method_name,
    path,
    response_type,
)
from tests.support.codes import GRPC_CODES

_ANSWER_SECONDS: Final = 30
_STREAMS: Final = {"WatchOrderPaymentsRequest"}


@dataclass(frozen=True)
class Options:
    """What a client is given; empty texts are left out."""

    url: str
    ca: str = ""
    """The path of a PEM file. Without it, the client speaks plain text."""
    token: str = ""
    service_config: Mapping[str, Any] | None = None
    """https://grpc.io/docs/guides/service-config, for libraries of gRPC alone."""


class Answer:
    """The messages of a call, as they arrive. Iterating raises Failure if the call failed."""

    def __init__(self) -> None:
        self._arrived: queue.SimpleQueue[Message[Any] | Failure | None] = queue.SimpleQueue()

    def put(self, item: "Message[Any] | Failure | None") -> None:
        """Add a message, or the end of the call: its failure, or None."""
        self._arrived.put(item)

    def __iter__(self) -> "Answer":
        return self

    def __next__(self) -> Any:
        item = self._arrived.get(timeout=_ANSWER_SECONDS)
        if item is None:
            raise StopIteration
        if isinstance(item, Failure):
            raise item
        return item

    def message(self) -> Any:
        """Return the only message."""
        (message,) = self
        return message


class Client(Protocol):
    """Makes calls, any number at a time."""

    def __call__(self, request: Message[Any], *, deadline: float = 0, cancel: float = 0) -> Answer:
        """Begin a call.

        It is given a deadline in seconds, and cancelled after some; 0 is without.
        """


@dataclass(frozen=True)
class Library:
    """A client library, over one of its protocols."""

    name: str
    """As in the table of docs/clients.md."""
    protocol: str
    language: str

    def __str__(self) -> str:
        return f"{self.name}-{self.protocol}"

    @contextmanager
    def connected(self, options: Options) -> Iterator[Client]:
        """Yield a client. Raises client_programs.Missing."""
        if self.language == "python":
            with _in_thread(partial(_PYTHON[self.name], self.protocol, options)) as client:
                yield client
        else:
            command = client_programs.command(self.language)
            own = {"library": self.name, "protocol": self.protocol}
            with _in_process([*command, json.dumps(own | asdict(options))]) as client:
                yield client


_CONNECT: Final = ("connect", "grpc", "grpc-web")

LIBRARIES: Final = (
    Library("grpcio", "grpc", "python"),
    *(Library("connectrpc", each, "python") for each in _CONNECT),
    Library("grpc-go", "grpc", "go"),
    *(Library("connect-go", each, "go") for each in _CONNECT),
    Library("grpc-js", "grpc", "node"),
    *(Library("connect-node", each, "node") for each in _CONNECT),
)


# Go and Node


@contextmanager
def _in_process(command: Sequence[str]) -> Iterator[Client]:
    answers: list[tuple[type[Message[Any]], Answer]] = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def read(lines: Iterator[str]) -> None:
            for line in lines:
                arrived = json.loads(line)
                kind, answer = answers[arrived["id"]]
                if "message" in arrived:
                    answer.put(kind.from_json(json.dumps(arrived["message"])))
                else:
                    answer.put(_failure(arrived["error"]) if arrived.get("error") else None)

        def call(request: Message[Any], *, deadline: float = 0, cancel: float = 0) -> Answer:
            answer = Answer()
            answers.append((response_type(request), answer))
            line = {
                "id": len(answers) - 1,
                "method": path(request).rpartition("/")[2],
                "request": json.loads(request.to_json()),
                "deadline": round(deadline * 1000),
                "cancel": round(cancel * 1000),
            }
            stdin.write(json.dumps(line) + "\n")
            return answer

        reader = threading.Thread(target=read, args=[stdout], daemon=True)
        reader.start()
        try:
            yield call
        finally:
            process.kill()
            reader.join()


def _failure(error: Mapping[str, Any]) -> Failure:
    details = []
    for each in error["details"] or ():
        name = each["@type"].rpartition(".")[2]
        kind: type[Message[Any]] = getattr(error_details_pb, name)
        content = {key: value for key, value in each.items() if key != "@type"}
        details.append(kind.from_json(json.dumps(content)))
    return Failure(GRPC_CODES[error["code"]], error["message"], tuple(details))


# Python

_Call = Callable[[Message[Any], float], AsyncIterator[Message[Any]]]
"""Makes a call with a deadline, and yields its messages, or raises Failure."""


@contextmanager
def _in_thread(open_call: Callable[[AsyncExitStack], _Call]) -> Iterator[Client]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    stack = AsyncExitStack()

    async def opened() -> _Call:
        return open_call(stack)

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    call = run(opened()).result()

    async def made(answer: Answer, request: Message[Any], deadline: float, cancel: float) -> None:
        try:
            async with asyncio.timeout(cancel or None):
                async for message in call(request, deadline):
                    answer.put(message)
            answer.put(None)
        except TimeoutError:
            answer.put(Failure("canceled", "by the caller"))
        except Failure as failure:
            answer.put(failure)

    def client(request: Message[Any], *, deadline: float = 0, cancel: float = 0) -> Answer:
        answer = Answer()
        run(made(answer, request, deadline, cancel))
        return answer

    async def closed() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await stack.aclose()

    try:
        yield client
    finally:
        run(closed()).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _grpcio(_: str, options: Options, stack: AsyncExitStack) -> _Call:
    target = options.url.rpartition("/")[2]
    given = []
    if options.service_config:
        given = [("grpc.service_config", json.dumps(options.service_config))]
    if options.ca:
        credentials = grpc.ssl_channel_credentials(Path(options.ca).read_bytes())
        if options.token:
            token = grpc.access_token_call_credentials(options.token)
            credentials = grpc.composite_channel_credentials(credentials, token)
        channel = grpc.aio.secure_channel(target, credentials, given)
    else:
        channel = grpc.aio.insecure_channel(target, given)
    stack.push_async_callback(channel.close)

    async def call(request: Message[Any], deadline: float) -> AsyncIterator[Message[Any]]:
        streams = type(request).__name__ in _STREAMS
        method = (channel.unary_stream if streams else channel.unary_unary)(
            path(request),
            request_serializer=type(request).to_binary,
            response_deserializer=response_type(request).from_binary,
        )
        try:
            if streams:
                async for message in method(request, timeout=deadline or None):
                    yield message
            else:
                yield await method(request, timeout=deadline or None)
        except grpc.aio.AioRpcError as error:
            raise grpc_failure(error) from error

    return call


def _connectrpc(protocol: str, options: Options, _: AsyncExitStack) -> _Call:
    http_client = None
    if protocol == "grpc" or options.ca:
        version = HTTPVersion.HTTP2 if protocol == "grpc" else None
        ca = Path(options.ca).read_bytes() if options.ca else None
        http_client = HTTPClient(HTTPTransport(http_version=version, tls_ca_cert=ca))
    client = OrderServiceClient(options.url, protocol=_PROTOCOLS[protocol], http_client=http_client)
    headers = {"authorization": f"Bearer {options.token}"} if options.token else {}

    async def call(request: Message[Any], deadline: float) -> AsyncIterator[Message[Any]]:
        method = getattr(client, method_name(request))
        answer = method(request, headers=headers, timeout_ms=round(deadline * 1000) or None)
        try:
            if type(request).__name__ in _STREAMS:
                async for message in answer:
                    yield message
            else:
                yield await answer
        except ConnectError as error:
            raise connect_failure(error) from error

    return call


_PROTOCOLS: Final = dict(
    zip(_CONNECT, (ProtocolType.CONNECT, ProtocolType.GRPC, ProtocolType.GRPC_WEB), strict=True)
)

_PYTHON: Final = {"grpcio": _grpcio, "connectrpc": _connectrpc}
