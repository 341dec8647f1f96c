"""What a process of the service tells of itself by its ``application_name`` in PostgreSQL.

It is the digest of the table of words in force, so that ``listings doctor`` sees in
pg_stat_activity whether all processes have the same.
"""

import re
from typing import Final

from persistence.dsn import parameters

_DEFAULT: Final = "listings"

# PostgreSQL cuts a name after 63 bytes, and replaces what is not ASCII byte by byte.
_MAX_BYTES: Final = 63

_DIGEST: Final = re.compile(r" words=([0-9a-f]{12})$")


def session_name(url: str, digest: str) -> str:
    """Return the name of a session at ``url``, a libpq URL: "listings words=ab12cd34ef56".

    A name that the URL gives takes the place of "listings". ``digest`` is that of ``StatusWords``.
    Raises InvalidDatabaseURL.
    """
    shown = f" words={digest}"
    given = parameters(url).get("application_name") or _DEFAULT
    kept = given.encode()[: _MAX_BYTES - len(shown)].decode(errors="ignore")
    return kept + shown


def digest_in(name: str) -> str | None:
    """Return the digest that a name of ``session_name`` has; None for another name."""
    found = _DIGEST.search(name)
    return found and found[1]
