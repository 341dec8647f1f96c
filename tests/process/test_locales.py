"""A service with an embedded database below a path that the locale cannot express."""

import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import callers, fork_server, service
from tests.support.callers import PATH
from tests.support.embedded import open_directory, servers_below


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that the unprivileged account can reach, with a name that is not ASCII."""
    base = open_directory()
    named = base / "später 数据"
    named.mkdir()
    yield named
    shutil.rmtree(base)


# Python turns its UTF-8 mode on in the locale C, unless it is told not to.
@pytest.mark.parametrize("utf8_mode", ["1", "0"])
def test_the_embedded_database_works_in_the_locale_c(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, utf8_mode: str
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("PYTHONUTF8", utf8_mode)
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(directory)  # the data directory is .listings below it
    for status in ("pending", "paid"):
        with (
            fork_server.avoided(),
            service.running("", tmp_path / "log") as running,
            callers.json_client(running.base_url) as http,
        ):
            order = http.post(PATH, json={"orderId": 1, "paymentProvider": "stripe"}).json()[
                "order"
            ]
            assert order["paymentStatus"] == status
            assert http.post(PATH, json={"orderId": 1, "paymentStatus": "paid"}).is_success
            assert running.stop() == 0
    assert (directory / ".listings" / "pgdata").exists()
    assert not list(servers_below(directory))


def test_the_command_is_installed_by_a_path_in_ascii() -> None:
    """Python reads ``.pth`` files in the locale's encoding, and does not start when it cannot."""
    installed = Path(sysconfig.get_path("purelib"), "_listings.pth")
    if not installed.exists():
        pytest.skip("the command is not installed from a checkout")
    assert installed.read_text("ascii") == "../../../..\n"
    assert (installed.parent / "../../../.." / "justw").exists()
