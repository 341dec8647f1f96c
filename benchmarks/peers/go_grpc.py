"""grpc-go with pgx: what the caller's own team would write."""

from pathlib import Path

from benchmarks.peers import golang


def prepare(directory: Path) -> tuple[str, ...]:
    """Build it in ``directory``; return the command."""
    return golang.build(directory, "grpcserver")
