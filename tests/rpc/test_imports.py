"""Only the listed modules import private parts of other packages."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    path
    for package in ("server", "persistence")
    for path in (ROOT / package).rglob("*.py")
    if "gen" not in path.relative_to(ROOT).parts
)
FAST_PATH = "server/rpc/fast_path.py"
LOAD_SHEDDING = "server/rpc/load_shedding.py"  # for the type of a request that it may reject
HOST_CHECK = "server/rpc/host_check.py"  # for the same


def imported(path: Path) -> Iterator[str]:
    """Yield the absolute imports of a module, including those in functions."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(prefixes: tuple[str, ...]) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in MODULES
        if any(name.startswith(prefixes) for name in imported(path))
    }


def test_private_parts_of_connectrpc() -> None:
    assert importers(("connectrpc._",)) == {FAST_PATH}


@pytest.mark.parametrize("prefix", ["uvicorn.protocols", "uvicorn._types", "uvloop.loop"])
def test_protocols_of_uvicorn_and_uvloop(prefix: str) -> None:
    found = importers((prefix,))
    assert found
    assert {each for each in found if not each.startswith("server/http/")} == set()


def test_zttp() -> None:
    found = {each for each in importers(("zttp",)) if not each.startswith("server/http/")}
    assert found == {FAST_PATH, LOAD_SHEDDING, HOST_CHECK}


def test_one_module_imports_server_http_and_connectrpc() -> None:
    both = importers(("server.http",)) & importers(("connectrpc",))
    assert both == {FAST_PATH}
