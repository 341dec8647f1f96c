"""The peers in Go: grpc-go and connect-go, each with pgx.

Their sources are in ``golang``; the code of the protos is generated next to a copy of them.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from benchmarks.errors import BenchmarkError

_SOURCES: Final = Path(__file__).parent / "golang"
_MODULE: Final = "listings.example/peers"
_PLUGINS: Final = {
    "go": "google.golang.org/protobuf/cmd/protoc-gen-go",
    "go-grpc": "google.golang.org/grpc/cmd/protoc-gen-go-grpc",
    "connect-go": "connectrpc.com/connect/cmd/protoc-gen-connect-go",
}
_VALIDATE: Final = "buf/validate/validate.proto"


def build(directory: Path, command: str) -> tuple[str, ...]:
    """Build ``command`` in ``directory``, and return the command line.

    Raises BenchmarkError if Go is missing, or cannot download its modules.
    """
    if shutil.which("go") is None:
        raise BenchmarkError("there is no Go toolchain")
    shutil.copytree(_SOURCES, directory)
    for name, package in _PLUGINS.items():
        _go(directory, "build", "-o", f"bin/protoc-gen-{name}", package)
    _generate(directory)
    _go(directory, "build", "-o", f"bin/{command}", f"./cmd/{command}")
    return (str(directory / "bin" / command),)


def _generate(directory: Path) -> None:
    from proto.generate import own_protos, protoc

    protos = [*own_protos(), _VALIDATE]
    packages = {each: f"{_MODULE}/gen/{Path(each).parent}" for each in protos}
    packages = {each: f"{path};{_short(path)}" for each, path in packages.items()}
    outputs = []
    for name in _PLUGINS:
        outputs += [
            f"--plugin=protoc-gen-{name}={directory}/bin/protoc-gen-{name}",
            f"--{name}_out={directory}",
            f"--{name}_opt=module={_MODULE}",
            *(f"--{name}_opt=M{each}={package}" for each, package in packages.items()),
        ]
    protoc(*outputs, *protos)


def _short(path: str) -> str:
    """Return the name of a package: listingsv1 for listings/v1."""
    parent, last = path.split("/")[-2:]
    return parent + last if last.startswith("v") and last[1:].isdigit() else last


def _go(directory: Path, *arguments: str) -> None:
    ran = subprocess.run(
        ["go", *arguments],
        cwd=directory,
        env=os.environ | {"GOFLAGS": "-buildvcs=false"},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise BenchmarkError(f"go {' '.join(arguments)}: {ran.stderr.strip()[-1_000:]}")
