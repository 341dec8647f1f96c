"""The server under test: ``python -m tests.conformance.serve``.

Reads a ServerCompatRequest from stdin, and writes a ServerCompatResponse to stdout once it serves,
each after its length in four bytes. SIGTERM stops it. Its log goes to ``LOG``.
"""

import asyncio
import sys
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Final

import uvloop

from server.http import Limits, Server
from server.http.sockets import listen
from server.observability import logging
from server.process.certificates import TLS
from server.process.parts import RESPONSE_HEADERS
from tests.conformance.app import create_app
from tests.conformance.gen.connectrpc.conformance.v1.server_compat_pb import (
    ServerCompatRequest,
    ServerCompatResponse,
)
from tests.conformance.tools import BUILT

COMMAND: Final = (sys.executable, "-m", "tests.conformance.serve")
LOG: Final = BUILT / "log"

_HOST: Final = "127.0.0.1"
_DRAIN_SECONDS: Final = 2.0
_LENGTH: Final = 4


def main() -> None:
    request = ServerCompatRequest.from_binary(read(sys.stdin.buffer))
    responses = sys.stdout.buffer
    with (
        LOG.open("a") as file,
        redirect_stdout(file),
        TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        logging.configure("debug")
        runner.run(_serve(request, _tls(request, Path(folder)), responses))


async def _serve(request: Any, tls: TLS | None, responses: IO[bytes]) -> None:
    (listener,) = listen(_HOST, 0)
    response = ServerCompatResponse(host=_HOST, port=listener.getsockname()[1])
    if tls:
        response.pem_cert = request.server_creds.cert
    stopping = asyncio.Event()
    application = create_app(request.message_receive_limit, stopping)
    server = Server(
        application.asgi,
        limits=Limits(max_read_ahead=Limits().max_read_ahead + request.message_receive_limit),
        tls=(lambda: tls.context) if tls else None,
        reject=application.reject,
        answer=application.fast_path,
        headers=RESPONSE_HEADERS.items(),
        started=lambda: write(responses, response.to_binary()),
        stopping=stopping.set,
        every_second=application.every_second,
        drain_timeout=_DRAIN_SECONDS,
    )
    await server.serve(sockets=[listener])


def _tls(request: Any, folder: Path) -> TLS | None:
    if not request.use_tls:
        return None
    cert, key, client_ca = folder / "cert", folder / "key", folder / "client-ca"
    cert.write_bytes(request.server_creds.cert)
    key.write_bytes(request.server_creds.key)
    client_ca.write_bytes(request.client_tls_cert)
    return TLS(cert, key, client_ca if request.client_tls_cert else None)


def read(stream: IO[bytes]) -> bytes:
    return stream.read(int.from_bytes(stream.read(_LENGTH)))


def write(stream: IO[bytes], message: bytes) -> None:
    stream.write(len(message).to_bytes(_LENGTH) + message)
    stream.flush()


if __name__ == "__main__":
    main()
