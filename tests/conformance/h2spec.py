"""Runs h2spec against the server under test, and compares its failures with the known ones."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from tests.conformance.gen.connectrpc.conformance.v1.server_compat_pb import (
    ServerCompatRequest,
    ServerCompatResponse,
)
from tests.conformance.serve import COMMAND, read, write
from tests.conformance.tools import BUILT, H2SPEC, ConformanceError

_SECONDS: Final = 120
_MAX_BYTES: Final = 64 * 1024
_REPORT: Final = BUILT / "h2spec.xml"

# The case's section and title. All are of zttp, which serves the request where RFC 9113 has an
# error, or waits for what follows; nothing is lost by that.
KNOWN: Final = frozenset(
    {
        ("http2/3.5", "Sends invalid connection preface"),  # answered over HTTP/1.1, with 400
        ("http2/5.3.1", "Sends HEADERS frame that depend on itself"),
        ("http2/5.3.1", "Sends PRIORITY frame that depend on itself"),
        ("http2/6.3", "Sends a PRIORITY frame with 0x0 stream identifier"),
    }
)


def run() -> None:
    """Raises ConformanceError, unless exactly the ``KNOWN`` cases fail."""
    _REPORT.unlink(missing_ok=True)
    with _served() as port:
        command = [str(H2SPEC), "--port", str(port), "--junit-report", str(_REPORT)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=False, timeout=_SECONDS
        )
    if not _REPORT.exists():
        raise ConformanceError(f"h2spec has written no report:\n{done.stdout}")
    cases, failed = _results(_REPORT)
    differences = [
        *(f"fails: {section}: {title}" for section, title in sorted(failed - KNOWN)),
        *(f"passes, and is among the known: {each}: {title}" for each, title in KNOWN - failed),
    ]
    if differences or not cases:
        raise ConformanceError("\n".join([done.stdout, *differences]))
    print(f"h2spec: {cases} cases, {cases - len(failed)} passed, {len(failed)} known to fail")


def _results(report: Path) -> tuple[int, set[tuple[str, str]]]:
    """Return how many cases there are, and those that failed."""
    cases = list(ET.parse(report).iter("testcase"))
    failed = {
        (case.attrib["package"], case.attrib["classname"])
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }
    return len(cases), failed


@contextmanager
def _served() -> Iterator[int]:
    """Run the server under test; yield its port."""
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        request = ServerCompatRequest(message_receive_limit=_MAX_BYTES)
        write(process.stdin, request.to_binary())
        process.stdin.close()
        try:
            yield ServerCompatResponse.from_binary(read(process.stdout)).port
        finally:
            process.terminate()
