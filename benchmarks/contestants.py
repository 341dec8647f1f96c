"""Who is measured. To add a peer: a module in ``benchmarks.peers``, and a line here."""

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Contestant:
    """A server, and how it is called.

    ``command`` runs it until SIGTERM. It reads LISTINGS_DATABASE_URL and LISTINGS_POOL_SIZE as the
    service does, and prints a line that ends with `` on http://127.0.0.1:PORT`` once it serves.
    ``protocol`` is a key of ``benchmarks.load.CALLERS``. A peer is held against the contestant that
    ``against`` names.
    """

    name: str
    command: tuple[str, ...]
    protocol: str
    against: str | None = None


def contestants(scratch: Path) -> list[Contestant]:
    """Return all contestants, in the order of a round. ``scratch`` is for what they generate."""
    from benchmarks.peers import grpc_aio

    listings = (sys.executable, "-m", "server", "serve")
    ours = Contestant("listings gRPC", listings, "grpc")
    return [
        ours,
        Contestant("grpc.aio", grpc_aio.prepare(scratch / "grpc_aio"), "grpc", against=ours.name),
        Contestant("listings JSON", listings, "json"),
    ]
