"""The programs of the suites, built from the sources that ``go.mod`` and ``go.sum`` pin."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).resolve().parent
BUILT: Final = _HERE.parents[1] / ".conformance"
"""For what is built, and what a run leaves."""

CONNECT: Final = BUILT / "bin" / "connectconformance"
H2SPEC: Final = BUILT / "bin" / "h2spec"


class ConformanceError(Exception):
    """A suite cannot run. The message has the reason."""


def build() -> None:
    """Build both programs, unless they are up to date. Raises ConformanceError."""
    _go("build", "-o", f"{CONNECT.parent}/", "tool")


def protos() -> Path:
    """Return the folder of the suite's protos. Raises ConformanceError."""
    module = _go("list", "-m", "-f", "{{.Dir}}", "connectrpc.com/conformance")
    return Path(module.strip(), "proto")


def _go(*arguments: str) -> str:
    if shutil.which("go") is None:
        version = re.search(r"^go (\S+)$", (_HERE / "go.mod").read_text(), re.MULTILINE)
        assert version is not None
        raise ConformanceError(f"this needs Go {version[1]} or later, and no go is on the PATH")
    # "-mod=readonly", because the suites are those that are pinned, or none.
    command = ["go", arguments[0], "-mod=readonly", *arguments[1:]]
    done = subprocess.run(command, cwd=_HERE, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise ConformanceError(f"{' '.join(command)} failed: see above")
    return done.stdout
