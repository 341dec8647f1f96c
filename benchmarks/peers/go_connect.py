"""connect-go with pgx: gRPC, gRPC-Web and Connect on one port, as here."""

from pathlib import Path

from benchmarks.peers import golang


def prepare(directory: Path) -> tuple[str, ...]:
    """Build it in ``directory``; return the command."""
    return golang.build(directory, "connectserver")
