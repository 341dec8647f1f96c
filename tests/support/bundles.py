"""Scripts for pages, built by esbuild in ``tests/clients/browser`` from TypeScript.

What is built is kept there until its sources change, and shared by all processes of a run.
"""

import functools
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Final

from tests.support.built_once import build_once
from tests.support.markdown import ROOT, blocks, page

_HERE: Final = ROOT / "tests" / "clients" / "browser"
_BUILD: Final = _HERE / "build"
_CONTRACT: Final = ROOT / "proto" / "contract.binpb"
_GENERATED: Final = ("listings", "google/rpc", "buf")
_BINARIES: Final = "node_modules/.bin"


@functools.cache
def clients() -> bytes:
    """Return the script of ``src/page.ts``."""
    return (_built() / "page.js").read_bytes()


@functools.cache
def documented() -> list[bytes]:
    """Return the TypeScript of docs/clients.md as scripts, in order.

    A block that imports something begins a script; one that does not continues it.
    """
    return [(_built() / f"{name}.js").read_bytes() for name in _documented()]


def _documented() -> dict[str, str]:
    """Return the sources of ``documented``, by the names of the scripts."""
    sources: list[str] = []
    for block in blocks(page("clients.md")):
        if block.language == "ts":
            if block.text.startswith("import "):
                sources.append("")
            sources[-1] += block.text
    return {f"documented-{number}": text for number, text in enumerate(sources)}


def _built() -> Path:
    """Return the directory of the scripts."""
    names = (".npmrc", "package-lock.json", "buf.gen.yaml", "tsconfig.json")
    sources = (
        Path(__file__),
        _CONTRACT,
        *(_HERE / name for name in names),
        *sorted(_HERE.glob("src/*")),
    )
    build_once(_HERE, sources, _build, texts=repr(_documented()))
    return _BUILD


def _build() -> None:
    shutil.rmtree(_BUILD, ignore_errors=True)
    _BUILD.mkdir()
    _install()
    buf = Path(sysconfig.get_path("scripts"), "buf")
    _run(buf, "generate", _CONTRACT, *(f"--path={path}" for path in _GENERATED))
    for name, text in _documented().items():
        (_BUILD / f"{name}.ts").write_text(text)
    _run(f"{_BINARIES}/tsc")
    entries = ["src/page.ts", *(f"build/{name}.ts" for name in _documented())]
    _run(
        f"{_BINARIES}/esbuild",
        *entries,
        "--bundle",
        "--format=esm",
        "--entry-names=[name]",
        f"--outdir={_BUILD}",
        "--log-level=warning",
    )


def _install() -> None:
    """Install the packages of the lock file, unless they are installed."""
    lock = (_HERE / "package-lock.json").read_bytes()
    installed = _HERE / "node_modules" / ".installed"
    if not installed.exists() or installed.read_bytes() != lock:
        _run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
        installed.write_bytes(lock)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=_HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout}{done.stderr}"
