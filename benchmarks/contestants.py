"""Who is measured. To add a peer: a module in ``benchmarks.peers``, and a line here."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Contestant:
    """A server, and how it is called.

    ``command`` runs it until SIGTERM. It reads LISTINGS_DATABASE_URL and LISTINGS_POOL_SIZE as the
    service does, and prints a line with ``http://127.0.0.1:PORT`` once it serves.
    ``protocol`` is a key of ``benchmarks.load.CALLERS``. With ``keyed``, each call has an
    idempotency key of its own. ``settings`` are environment variables. Without ``history``,
    PostgreSQL's triggers are off meanwhile: who does not keep one does not pay for it. The
    contestant that ``against`` names is held against this one.
    """

    name: str
    command: tuple[str, ...]
    protocol: str
    keyed: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    history: bool = True
    against: str | None = None


def contestants(scratch: Path) -> list[Contestant]:
    """Return all contestants, in the order of a round. ``scratch`` is for what they generate."""
    from benchmarks.peers import grpc_aio

    listings = (sys.executable, "-m", "server", "serve")
    peer = grpc_aio.prepare(scratch / "grpc_aio")
    unguarded = {"LISTINGS_STATUS_GUARD": "off"}
    ours = Contestant("listings", listings, "grpc")
    return [
        ours,
        Contestant("grpc.aio", peer, "grpc", history=False, against=ours.name),
        Contestant("no guard", listings, "grpc", settings=unguarded, against=ours.name),
        Contestant(
            "no history",
            listings,
            "grpc",
            settings=unguarded,
            history=False,
            against=ours.name,
        ),
        Contestant("keyed", listings, "grpc", keyed=True, against=ours.name),
        Contestant("JSON", listings, "json", against=ours.name),
    ]
