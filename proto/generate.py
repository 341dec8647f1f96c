"""Generates the package ``server.gen`` from the protos beside this file.

    python -m proto.generate

Does nothing when nothing has changed since the last time. Third-party protos come as descriptors
from the installed packages, so there are no copies of them here, and no network is needed.
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
_PERMISSIONS = PROTO / "permissions.toml"  # goes along with the code

# Generated along with our own: the errors of our responses, and the health service.
_THIRD_PARTY = (
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
    "grpc_health/v1/health.proto",
)

# The code for the validation rules is generated already, in the protovalidate package.
_OPTIONS = "map_imports=buf/**:protovalidate._gen"


def main() -> None:
    """Bring the generated code up to date."""
    fingerprint = _fingerprint()
    if _is_current(fingerprint):
        return
    # Two runs at a time must not take the package away from each other.
    with (_OUTPUT.parent / "gen.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_current(fingerprint):
            _generate(fingerprint)


def own_protos() -> list[str]:
    """Return our protos, as an import in a proto names them."""
    return sorted(path.relative_to(PROTO).as_posix() for path in PROTO.rglob("*.proto"))


def protoc(*arguments: str) -> None:
    """Run protoc over ``arguments``, which may name our protos and the third-party ones.

    Exits with protoc's own messages when it fails.
    """
    with tempfile.NamedTemporaryFile(suffix=".binpb") as third_party:
        third_party.write(_third_party_descriptors())
        third_party.flush()
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}"]
        sources = f"--descriptor_set_in={third_party.name}"
        if subprocess.run([*command, sources, *arguments], check=False).returncode != 0:
            raise SystemExit(1)


def _fingerprint() -> str:
    """Hash what the generated code depends on; the lock file stands for the plugins' versions."""
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
        arguments = []
        for name in ("py", "connectrpc"):
            plugin = Path(sysconfig.get_path("scripts"), f"protoc-gen-{name}")
            arguments += [f"--plugin={plugin}", f"--{name}_out={new}", f"--{name}_opt={_OPTIONS}"]
        protoc(*arguments, *own_protos(), *_THIRD_PARTY)
        shutil.copy(_PERMISSIONS, new)
        (new / _FINGERPRINT).write_text(fingerprint)
        with suppress(FileNotFoundError):
            _OUTPUT.rename(Path(scratch, "old"))
        new.rename(_OUTPUT)


def _third_party_descriptors() -> bytes:
    """Return, as a serialised FileDescriptorSet, all that is not ours."""
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
    # They import google/protobuf/duration.proto too, which the validation rules have brought.
    for module in (any_pb2, error_details_pb2, status_pb2, health_pb2):
        proto = FileDescriptorProto.from_binary(module.DESCRIPTOR.serialized_pb)
        files[proto.name] = proto
    return FileDescriptorSet(file=list(files.values())).to_binary()


if __name__ == "__main__":
    main()
