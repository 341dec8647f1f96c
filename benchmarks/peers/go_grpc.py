"""grpc-go with pgx: the usual choice for gRPC in Go."""

from pathlib import Path

from benchmarks.peers import golang


def prepare(directory: Path) -> tuple[str, ...]:
    """Build it in ``directory``; return the command."""
    return golang.build(directory, "grpcserver")
