"""Compares the protos with ``contract.binpb``, the contract that was accepted last.

    python -m proto.contract check
    python -m proto.contract accept [--force]

``contract.binpb`` is a FileDescriptorSet of the project's protos, their imports, and the protos of
the details that errors carry: all that a client generates its code from. It has no comments.
"""

import argparse
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protobuf.wkt import FileDescriptorSet

from proto.generate import DETAILS, PROTO, own_protos, protoc

_ACCEPTED = PROTO / "contract.binpb"


def main() -> None:
    """Run the command that the command line names."""
    parser = argparse.ArgumentParser(
        prog="contract", description="The contract that was accepted last."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="lint the protos, and compare them with the contract")
    accepting = commands.add_parser("accept", help="make the present protos the contract")
    accepting.add_argument("--force", action="store_true", help="accept a breaking change, too")
    arguments = parser.parse_args()
    if arguments.command == "check":
        check()
    else:
        accept(force=arguments.force)


def check() -> None:
    """Exit with 1 unless the protos pass buf's lint and equal ``contract.binpb``."""
    with _image() as image:
        _lint(image)
        _refuse_breaking(image)
        if _own_files(_contract(image)) != _own_files(_ACCEPTED.read_bytes()):
            raise SystemExit(
                "The protos differ from the contract that was accepted last, in nothing that buf "
                "calls breaking. Accept them with `./justw contract`, and commit "
                "proto/contract.binpb."
            )


def accept(*, force: bool) -> None:
    """Write ``contract.binpb``. Exit with 1 on a breaking change, unless ``force`` is set."""
    with _image() as image:
        if _ACCEPTED.exists() and not force:
            _refuse_breaking(image)
        contract = _contract(image)
        if not _ACCEPTED.exists() or _own_files(contract) != _own_files(_ACCEPTED.read_bytes()):
            _ACCEPTED.write_bytes(contract)


@contextmanager
def _image() -> Iterator[Path]:
    """Yield a file that holds the protos as a FileDescriptorSet, with imports and comments."""
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch, "image.binpb")
        options = ("--include_imports", "--include_source_info", f"--descriptor_set_out={image}")
        protoc(*options, *own_protos(), *DETAILS)
        yield image


def _lint(image: Path) -> None:
    if not _buf("lint", image):
        raise SystemExit(1)


def _refuse_breaking(image: Path) -> None:
    if not _buf("breaking", image, f"--against={_ACCEPTED}"):
        raise SystemExit(
            "This breaks clients of the contract that was accepted last. If there are none, "
            "accept it with `./justw contract --force`."
        )


def _buf(command: str, image: Path, *options: str) -> bool:
    """Run buf on the project's files in ``image``, without imports. Return whether it passes."""
    buf = Path(sysconfig.get_path("scripts"), "buf")
    own = [f"--path={directory}" for directory in _own_directories()]
    config = f"--config={PROTO / 'buf.yaml'}"
    run = subprocess.run([buf, command, str(image), config, *own, *options], check=False)
    return run.returncode == 0


def _contract(image: Path) -> bytes:
    """Return ``image`` without comments and source positions."""
    files = FileDescriptorSet.from_binary(image.read_bytes())
    for file in files.file:
        file.clear_field("source_code_info")
    return files.to_binary()


def _own_files(contract: bytes) -> dict[str, bytes]:
    files = FileDescriptorSet.from_binary(contract).file
    own = tuple(f"{directory}/" for directory in _own_directories())
    return {file.name: file.to_binary() for file in files if file.name.startswith(own)}


def _own_directories() -> list[str]:
    return sorted({name.partition("/")[0] for name in own_protos()})


if __name__ == "__main__":
    main()
