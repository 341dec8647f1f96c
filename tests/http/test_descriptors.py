"""A service that runs out of file descriptors."""

import socket
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil

from tests.support.service import Service, on_own_database
from tests.support.waiting import eventually

FREE = 20  # descriptors


def answers(service: Service) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{service.base_url}/livez", trust_env=False).status_code == 200
    return False


def test_accepting_goes_on_and_the_log_has_one_entry(tmp_path: Path) -> None:
    with on_own_database(tmp_path / "log") as service:
        process = psutil.Process(service.process.pid)
        limit = process.num_fds() + FREE
        process.rlimit(psutil.RLIMIT_NOFILE, (limit, limit))

        def logged(text: str) -> list[str]:
            return [each["event"] for each in service.logged() if text in each["event"]]

        for _ in range(2):
            with ExitStack() as clients:
                for _ in range(5 * FREE):
                    clients.enter_context(socket.create_connection(("127.0.0.1", service.port)))
                eventually(lambda: logged("out of file descriptors"))
                assert not answers(service)
            eventually(lambda: answers(service))
        (entry,) = logged("out of file descriptors")
        assert f"(limit {limit}, connections open {FREE})" in entry
        eventually(lambda: logged("file descriptors are free again"))
        assert len(logged("file descriptors are free again")) == 1
        assert len(service.logged(level="error")) == 1
        assert "Traceback" not in service.log.read_text()
        assert answers(service)
