"""Generates the package ``server.gen`` from the protos beside this file.

    python -m proto.generate

Does nothing when its inputs have not changed since the last run. Third-party protos come as
descriptors from the installed packages, so there are no copies of them here, and no network is
needed.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path

PROTO = Path(__file__).resolve().parent
_ROOT = PROTO.parent
_OUTPUT = _ROOT / "server" / "gen"
_FINGERPRINT = ".fingerprint"
_PERMISSIONS = PROTO / "permissions.toml"  # copied beside the generated code

DETAILS = ("google/rpc/error_details.proto", "google/rpc/status.proto")
"""What clients decode the details of errors with."""

_THIRD_PARTY = (*DETAILS, "grpc_health/v1/health.proto")  # generated, too

# The protovalidate package contains the generated code of the validation rules.
_OPTIONS = "map_imports=buf/**:protovalidate._gen"


def main() -> None:
    """Bring the generated code up to date."""
    fingerprint = _fingerprint()
    if _is_current(fingerprint):
        return
    # Of two runs at a time, one must not replace the package that the other has just written.
    with (_OUTPUT.parent / "gen.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_current(fingerprint):
            _generate(fingerprint)


def own_protos() -> list[str]:
    """Return the paths of the project's protos, as imports in a proto name them, sorted."""
    return sorted(path.relative_to(PROTO).as_posix() for path in PROTO.rglob("*.proto"))


def protoc(*arguments: str) -> None:
    """Run protoc with ``arguments``, which may name the project's protos and third-party ones.

    Raises SystemExit, after protoc's own messages, when it fails.
    """
    with tempfile.NamedTemporaryFile(suffix=".binpb") as third_party:
        third_party.write(_third_party_descriptors())
        third_party.flush()
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}"]
        sources = f"--descriptor_set_in={third_party.name}"
        if subprocess.run([*command, sources, *arguments], check=False).returncode != 0:
            raise SystemExit(1)


def generate_into(output: Path, *arguments: str) -> None:
    """Write the messages and services of the protos in ``arguments``, for ``protoc``, to a folder.

    Raises SystemExit, as ``protoc`` does.
    """
    plugins = []
    for name in ("py", "connectrpc"):
        plugin = Path(sysconfig.get_path("scripts"), f"protoc-gen-{name}")
        plugins += [f"--plugin={plugin}", f"--{name}_out={output}", f"--{name}_opt={_OPTIONS}"]
    protoc(*plugins, *arguments)


def _fingerprint() -> str:
    """Return a hash of the inputs; the lock file among them has the plugins' versions."""
    digest = hashlib.sha256()
    inputs = [Path(__file__), _ROOT / "requirements" / "dev.txt", _PERMISSIONS]
    for path in inputs + [PROTO / name for name in own_protos()]:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _is_current(fingerprint: str) -> bool:
    with suppress(FileNotFoundError):
        return (_OUTPUT / _FINGERPRINT).read_text() == fingerprint
    return False


def _generate(fingerprint: str) -> None:
    with tempfile.TemporaryDirectory(prefix=".gen-", dir=_OUTPUT.parent) as scratch:
        new = Path(scratch, "new")
        new.mkdir()
        generate_into(new, *own_protos(), *_THIRD_PARTY)
        shutil.copy(_PERMISSIONS, new)
        (new / _FINGERPRINT).write_text(fingerprint)
        with suppress(FileNotFoundError):
            _OUTPUT.rename(Path(scratch, "old"))
        new.rename(_OUTPUT)


def _third_party_descriptors() -> bytes:
    """Return the third-party protos as a serialised FileDescriptorSet."""
    from google.protobuf import any_pb2
    from google.rpc import error_details_pb2, status_pb2
    from grpc_health.v1 import health_pb2
    from protobuf import DescFile
    from protobuf.wkt import FileDescriptorProto, FileDescriptorSet
    from protovalidate._gen.buf.validate import validate_pb

    files: dict[str, FileDescriptorProto] = {}

    def add(file: DescFile) -> None:
        for dependency in file.dependencies:
            add(dependency)
        files[file.name] = file.proto

    add(validate_pb.desc())
    # Their import google/protobuf/duration.proto is among the imports of the validation rules.
    for module in (any_pb2, error_details_pb2, status_pb2, health_pb2):
        proto = FileDescriptorProto.from_binary(module.DESCRIPTOR.serialized_pb)
        files[proto.name] = proto
    return FileDescriptorSet(file=list(files.values())).to_binary()


if __name__ == "__main__":
    main()
