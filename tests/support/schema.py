"""Messages that are not in the contract, from the text of a proto file."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]
from protobuf import DescFile
from protobuf._codegen import file_desc
from protobuf.wkt import Struct
from protobuf.wkt.google.protobuf.descriptor_pb import FileDescriptorSet

from server.gen.listings.v1 import orders_pb


def compiled(text: str) -> DescFile:
    """Return the descriptor of a proto file, which may import what the contract imports."""
    imported = [*_dependencies(orders_pb.desc().dependencies), Struct.desc().file]
    with tempfile.TemporaryDirectory() as folder:
        source, known, target = (Path(folder, name) for name in ("sample.proto", "known", "target"))
        source.write_text(text)
        known.write_bytes(FileDescriptorSet(file=[each.proto for each in imported]).to_binary())
        options = [f"-I{folder}", f"--descriptor_set_in={known}", f"--descriptor_set_out={target}"]
        assert protoc.main(["protoc", *options, source.name]) == 0
        (proto,) = FileDescriptorSet.from_binary(target.read_bytes()).file
    return file_desc(proto.to_binary(), imported, {})


def _dependencies(direct: Sequence[DescFile]) -> Iterator[DescFile]:
    """Yield each file once, after those that it imports."""
    seen: dict[str, DescFile] = {}

    def visit(file: DescFile) -> None:
        for each in file.dependencies:
            visit(each)
        seen.setdefault(file.name, file)

    for file in direct:
        visit(file)
    yield from seen.values()
