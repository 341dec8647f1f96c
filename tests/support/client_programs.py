"""The programs of tests/clients that call the service with libraries of Go and of Node.

Each is built once for its sources and the contract, by the first of the processes that need it.
"""

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from proto.generate import PROTO, own_protos, protoc
from tests.support.built_once import build_once
from tests.support.markdown import ROOT

_SOURCES: Final = ROOT / "tests" / "clients"
_GO: Final = _SOURCES / "go"
_NODE: Final = _SOURCES / "node"
_GO_PACKAGE: Final = "listings/tests/clients/gen/listings/v1;listingsv1"
_NODE_VERSION: Final = 20


class Missing(Exception):
    """A tool is not on the PATH, or too old. The message says what to install."""


@functools.cache
def command(language: str) -> Sequence[str]:
    """Return the command of the program in "go" or "node", built; for "python" it is empty."""
    match language:
        case "go":
            return _go()
        case "node":
            return _node()
        case _:
            return ()


def _go() -> Sequence[str]:
    version = re.search(r"^go (\S+)$", (_GO / "go.mod").read_text(), re.MULTILINE)
    assert version is not None
    if shutil.which("go") is None:
        raise Missing(f"no go is on the PATH: install Go {version[1]} or later, https://go.dev/dl")
    sources = [*sorted(_GO.glob("*.go")), _GO / "go.mod", _GO / "go.sum"]
    build_once(_GO, [*_shared(), *sources], _build_go)
    return [str(_GO / "bin" / "clients")]


def _node() -> Sequence[str]:
    needed = f"install Node {_NODE_VERSION} or later with npm, https://nodejs.org"
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Missing(f"no node and npm are on the PATH: {needed}")
    found = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    if int(found.stdout.lstrip("v").partition(".")[0]) < _NODE_VERSION:
        raise Missing(f"node is {found.stdout.strip()}: {needed}")
    sources = [_NODE / name for name in (".npmrc", "package.json", "package-lock.json")]
    build_once(_NODE, [*_shared(), *sources], _build_node)
    return ["node", str(_NODE / "main.js")]


def _build_go() -> None:
    # "-mod=readonly", because the clients are those that are pinned, or none.
    build = ["go", "build", "-mod=readonly", "-o", "bin/"]
    _run(_GO, *build, "tool")
    output = _emptied(_GO / "gen")
    options = f"paths=source_relative,Mlistings/v1/orders.proto={_GO_PACKAGE}"
    arguments = []
    for name in ("go", "go-grpc", "connect-go"):
        arguments += [f"--plugin={_GO / 'bin' / f'protoc-gen-{name}'}"]
        arguments += [f"--{name}_out={output}", f"--{name}_opt={options}"]
    protoc(*arguments, *own_protos())
    _run(_GO, *build, ".")


def _build_node() -> None:
    _run(_NODE, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
    output = _emptied(_NODE / "gen")
    protoc(
        f"--plugin={_NODE / 'node_modules' / '.bin' / 'protoc-gen-es'}",
        f"--es_out={output}",
        "--es_opt=target=js,import_extension=js",
        *own_protos(),
        *("buf/validate/validate.proto", "google/rpc/error_details.proto"),
        "google/rpc/status.proto",
    )


def _shared() -> Sequence[Path]:
    """Return what each program is built from, besides its own sources."""
    return [Path(__file__), *(PROTO / name for name in own_protos())]


def _emptied(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def _run(directory: Path, *command: str) -> None:
    done = subprocess.run(
        command, cwd=directory, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
