"""The wheel, built, installed into a new virtual environment, and started."""

import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from persistence.schema import migration_ids
from persistence.status_words import StatusWords

_CHECKOUT = Path(__file__).resolve().parents[1]
_START_SECONDS = 60
_STOP_SECONDS = 60

_WHERE = """
import persistence, server.asgi, server.cli
from persistence.schema import migration_ids, migrations_directory
from persistence.status_words import StatusWords
for module in (persistence, server.asgi, server.cli):
    print(module.__file__)
print(migrations_directory())
print(*migration_ids())
print(StatusWords.builtin().digest)
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty directory that the unprivileged account of the embedded database can enter."""
    with tempfile.TemporaryDirectory(prefix="listings-wheel-") as name:
        Path(name).chmod(0o755)
        yield Path(name).resolve()


def test_the_wheel_serves_the_demo_orders(directory: Path) -> None:
    wheel = _build(directory / "dist")
    environment = _environment(directory / "environment")
    pip = (sys.executable, "-m", "pip", "--python", str(environment))
    _run(*pip, "install", "--no-index", "--no-deps", wheel)

    where = _run(environment / "bin" / "python", "-I", "-c", _WHERE).splitlines()
    assert where.pop() == StatusWords.builtin().digest
    assert where.pop() == " ".join(migration_ids())
    for place in where:
        assert Path(place).is_relative_to(environment)

    with _serving(environment, directory) as (base_url, process):
        answer = httpx.post(
            f"{base_url}/listings.v1.OrderService/UpdateOrderPayment",
            json={"orderId": 1, "paymentProvider": "stripe", "paymentStatus": "paid"},
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["success"] is True
        assert answer.json()["order"]["id"] == "1"
        assert answer.json()["order"]["paymentStatus"] == "paid"

        process.send_signal(signal.SIGTERM)
        assert process.wait(_STOP_SECONDS) == 0


def _build(directory: Path) -> Path:
    _run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", directory)
    (wheel,) = directory.glob("*.whl")
    return wheel


def _environment(directory: Path) -> Path:
    """Make a virtual environment with the packages of this one, but without this project.

    The packages are linked one by one, and not the directory that holds them: what a package finds
    beside it is then what it would find after `pip install`.
    """
    venv.create(directory, symlinks=True)
    (site,) = directory.glob("lib/python*/site-packages")
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        # A .pth file may add the checkout to sys.path: that is how an editable install works.
        if package.suffix != ".pth" and not package.name.startswith("listings-"):
            (site / package.name).symlink_to(package)
    return directory


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=_CHECKOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def _serving(environment: Path, directory: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run ``listings serve`` on a database of its own; yield its base URL and the process."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("LISTINGS_", "PYTHON"))}
    variables |= {"LISTINGS_PORT": "0", "LISTINGS_DATA_DIR": str(directory / "data")}
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [environment / "bin" / "listings", "serve"],
            cwd=directory,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield found[0], process
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()
