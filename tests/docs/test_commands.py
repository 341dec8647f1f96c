"""Every command block of README and docs runs unchanged, in the order of its page.

In a directory that looks like the checkout, by bash -eu, with the documented address replaced by
that of a service of the test's own. ``tests/support/markdown.py`` says how a block is marked that
cannot run everywhere. LISTINGS_DOCS=full also runs those that download and compile.
"""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from persistence import seeding
from tests.support import databases, service
from tests.support.embedded import open_directory
from tests.support.markdown import MARKS, PAGES, ROOT, Block, blocks, page

FULL: Final = os.environ.get("LISTINGS_DOCS") == "full"

# Seconds.
LIMIT: Final = 600.0 if FULL else 60.0
STOP: Final = 30.0

SHELL_BLOCKS: Final = [
    block for each in PAGES for block in blocks(each) if block.language in ("sh", "bash", "shell")
]

SERVING: Final = "Serving"

OWNER: Final = "postgresql://owner:secret@db.example:5432/shop"
SERVICE: Final = "postgresql://listings_service:secret@db.example:5432/shop"


class Reader:
    """Runs blocks as if pasted into terminals, in a directory of its own."""

    def __init__(self, directory: Path, port: int, settings: Mapping[str, str]) -> None:
        self._scratch = directory / "scratch"
        self._scratch.mkdir()
        self._checkout = directory / "listings"
        self._checkout.mkdir()
        for entry in ROOT.iterdir():
            if entry.name not in (".git", ".listings", ".listings-dev"):
                (self._checkout / entry.name).symlink_to(entry)
        (directory / ".curlrc").write_text("fail-with-body\n")
        (directory / "lenient").mkdir()
        self._environment = _outside_of_the_venv(os.environ) | {
            "CURL_HOME": str(directory),
            "LISTINGS_PORT": str(port),
            "LISTINGS_WORKERS": "1",
            "TMPDIR": str(self._scratch),
            "no_proxy": "127.0.0.1,localhost",
            "NO_PROXY": "127.0.0.1,localhost",
            **settings,
        }
        # As an absolute path, because ./justw changes to the real checkout.
        self.replaced = {
            ":8080": f":{port}",
            "192.0.2.7": "127.0.0.1",
            ".listings-dev": str(self._checkout / ".listings-dev"),
        }
        self._background: list[subprocess.Popen[bytes]] = []

    def run(self, block: Block) -> None:
        """Run a block, and check its exit code and its output."""
        text = block.text
        for documented, own in self.replaced.items():
            text = text.replace(documented, own)
        output = self._scratch / f"{block.page.stem}-{block.line}"
        environment = dict(self._environment)
        if "prints" in block.marks:
            environment["CURL_HOME"] = str(self._scratch.parent / "lenient")
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-eu", "-o", "pipefail", "-c", text],
                cwd=self._checkout,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._background.append(process)
        if awaited := block.marks.get("background"):
            self._wait(block, process, output, awaited)
            return
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = None
        printed = output.read_text()
        assert code == 0, f"{block} exits with {code}:\n{text}\nand prints\n{printed}"
        rest = printed
        for expected in filter(None, block.marks.get("prints", "").split(", ")):
            assert expected in rest, f"{block} does not print {expected}, but\n{printed}"
            rest = rest.partition(expected)[2]

    def close(self) -> None:
        """Stop the processes in the background."""
        for process in reversed(self._background):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(STOP)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    raise

    def _wait(
        self, block: Block, process: subprocess.Popen[bytes], output: Path, awaited: str
    ) -> None:
        deadline = time.monotonic() + LIMIT
        while awaited not in output.read_text():
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, f"{block} has not printed {awaited}, but\n{output.read_text()}"
            time.sleep(0.05)


def _outside_of_the_venv(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without ``.venv``, which only the documented commands activate."""
    venv = environment.get("VIRTUAL_ENV", "")
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith(("LISTINGS_", "PYTEST_")) and name != "VIRTUAL_ENV"
    }
    paths = kept["PATH"].split(os.pathsep)
    kept["PATH"] = os.pathsep.join(each for each in paths if not venv or venv not in each)
    return kept


def _session(name: str) -> list[Block]:
    """Return the blocks to run for a page: its own, then those of pages that build on it."""
    own = [each for each in SHELL_BLOCKS if each.page == page(name) and "on" not in each.marks]
    return own + [each for each in SHELL_BLOCKS if each.marks.get("on") == name]


def _can_run(block: Block) -> bool:
    tools = block.marks.get("needs", "").split()
    found = all(shutil.which(tool) for tool in tools)
    return found and "no-run" not in block.marks and (FULL or "full" not in block.marks)


@contextmanager
def _reader(port: int, **settings: str) -> Iterator[Reader]:
    directory = open_directory()  # also root's unprivileged account can reach a database below it
    reader = Reader(
        directory, port, {"LISTINGS_DATA_DIR": str(directory / ".listings"), **settings}
    )
    try:
        yield reader
    finally:
        reader.close()
        shutil.rmtree(directory, ignore_errors=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def _on_served_orders(log: Path) -> Iterator[Reader]:
    """Yield a reader beside a service with demo orders."""
    with databases.clone() as url:
        asyncio.run(seeding.seed_if_empty(url, 100))
        with service.running(url, log) as running:
            own = service.environment_on(url)
            settings = {name: own[name] for name in own if name.startswith("LISTINGS_DATABASE")}
            with _reader(running.port, **settings) as reader:
                yield reader
            assert running.stop() == 0


@contextmanager
def _on_own_server() -> Iterator[Reader]:
    """Yield a reader with an empty database on a PostgreSQL server."""
    role = f"listings_service_{uuid.uuid4().hex[:8]}"
    with databases.empty() as url, _reader(_free_port()) as reader:
        password = urlsplit(url).password or "secret"
        reader.replaced |= {
            OWNER: url,
            SERVICE: databases.with_role(url, "listings_service"),
            "listings_service": role,
            "PASSWORD 'secret'": f"PASSWORD '{password}'",
        }
        try:
            yield reader
        finally:
            reader.close()
            with psycopg.connect(url, autocommit=True) as connection:
                drop = sql.SQL("DROP ROLE IF EXISTS {}")
                connection.execute(drop.format(sql.Identifier(role)))


def test_every_mark_is_known() -> None:
    names = {each.name for each in PAGES}
    for block in SHELL_BLOCKS:
        assert block.marks.keys() <= MARKS, f"{block} has a mark that means nothing"
        empty = [name for name, value in block.marks.items() if not value]
        assert not empty, f"{block} does not say what {empty} means"
        assert block.marks.get("on", "README.md") in names, f"{block} is on no page"


def test_every_block_is_shell() -> None:
    for block in SHELL_BLOCKS:
        done = subprocess.run(
            ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}: {done.stderr}"


def test_the_shell_of_a_reader_keeps_its_directory_and_path() -> None:
    for block in SHELL_BLOCKS:
        if re.search(r"^cd |\bPATH=", block.text, re.MULTILINE):
            assert block.text.startswith("(\n"), block
            assert block.text.endswith("\n)\n"), block


@pytest.mark.parametrize("name", [each.name for each in PAGES if _session(each.name)])
def test_the_commands_of(name: str, tmp_path: Path) -> None:
    session = [each for each in _session(name) if _can_run(each)]
    serves = any(each.marks.get("background") == SERVING for each in session)
    with ExitStack() as stack:
        if any(OWNER in each.text for each in session):
            reader = stack.enter_context(_on_own_server())
        elif serves:
            reader = stack.enter_context(_reader(_free_port()))
        elif session:
            reader = stack.enter_context(_on_served_orders(tmp_path / "log"))
        for block in session:
            reader.run(block)
