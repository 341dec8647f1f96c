"""What PostgreSQL lets every role do, and the embedded one does not.

A role has the rights of PUBLIC, so they cannot be taken from the service's role alone. The database
is for the service, so that no other application misses them. The owner, a superuser, keeps all.
"""

from typing import Final

DATABASE: Final = "listings"
"""The database that the service uses. The cluster has ``postgres`` and ``template1`` besides."""

ARE_OPEN: Final = """
SELECT EXISTS (
    SELECT FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) AS granted
    WHERE granted.grantee = 0
    AND CASE datname
        WHEN 'listings' THEN granted.privilege_type = 'TEMPORARY'
        ELSE datname IN ('postgres', 'template1')
    END
)
"""
"""Whether ``REVOKE`` is needed: true for a cluster where it was never committed.

It reads what all databases share, so that a start needs no session in ``DATABASE`` for it: whether
PUBLIC may make temporary tables in ``DATABASE``, or connect to the others.
"""

# https://www.postgresql.org/docs/current/lo-funcs.html
_LARGE_OBJECT_FUNCTIONS: Final = (
    "lo_close(integer)",
    "lo_creat(integer)",
    "lo_create(oid)",
    "lo_export(oid, text)",
    "lo_from_bytea(oid, bytea)",
    "lo_get(oid)",
    "lo_get(oid, bigint, integer)",
    "lo_import(text)",
    "lo_import(text, oid)",
    "lo_lseek(integer, integer, integer)",
    "lo_lseek64(integer, bigint, integer)",
    "lo_open(oid, integer)",
    "lo_put(oid, bigint, bytea)",
    "lo_tell(integer)",
    "lo_tell64(integer)",
    "lo_truncate(integer, integer)",
    "lo_truncate64(integer, bigint)",
    "lo_unlink(oid)",
    "loread(integer, integer)",
    "lowrite(integer, bytea)",
)

REVOKE: Final = f"""
REVOKE EXECUTE ON FUNCTION {", ".join(_LARGE_OBJECT_FUNCTIONS)} FROM PUBLIC;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
REVOKE CREATE, TEMPORARY ON DATABASE {DATABASE} FROM PUBLIC;
"""
"""Statements for the owner in a session of ``DATABASE``, which psql runs in one transaction.

They may be run again.
"""
