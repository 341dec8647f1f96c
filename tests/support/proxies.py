"""nginx and HAProxy in front of two processes, with the configurations of docs/operations.md."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.markdown import blocks, page
from tests.support.waiting import eventually

TIMEOUT: Final = 2
"""Seconds after which a proxy ends a silent stream; 30 in the documentation."""

_PATH: Final = f"{os.environ['PATH']}:/usr/sbin"


class Proxy(NamedTuple):
    """A proxy that runs."""

    http2: str
    """Its base URL for HTTP/2."""
    http1: str
    log: Path


def program(name: str) -> str | None:
    """Return the path of a proxy's program, or None where it is not installed."""
    return shutil.which(name, path=_PATH)


@contextmanager
def running(name: str, ports: Sequence[int], directory: Path) -> Iterator[Proxy]:
    """Run ``nginx`` or ``haproxy`` in front of services at two ``ports``."""
    (text,) = (each.text for each in blocks(page("operations.md")) if each.language == name)
    http2, http1 = _free_ports(2)
    for documented, own in zip((8080, 8081, 8090, 8091), (*ports, http2, http1), strict=True):
        assert f"127.0.0.1:{documented}" in text
        text = text.replace(f"127.0.0.1:{documented}", f"127.0.0.1:{own}")
    assert " 30s" in text
    config, log = directory / name, directory / f"{name}.log"
    config.write_text(text.replace(" 30s", f" {TIMEOUT}s"))
    binary = program(name)
    assert binary
    command = [binary, "-db", "-f", str(config)]
    if name == "nginx":
        directives = f"daemon off; master_process off; pid {directory}/nginx.pid;"
        command = [binary, "-p", str(directory), "-c", str(config), "-e", "stderr"]
        command += ["-g", f"{directives} error_log stderr info;"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: process.poll() is not None or (_accepts(http1) and _accepts(http2)))
        assert process.poll() is None, log.read_text()
        yield Proxy(f"http://127.0.0.1:{http2}", f"http://127.0.0.1:{http1}", log)
    finally:
        process.terminate()
        process.wait(20)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
