"""The URL of a database, parsed as libpq does, for all drivers: each parses it differently."""

from urllib.parse import urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from persistence.errors import InvalidDatabaseURL

# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
_ASYNCPG_KNOWS = frozenset(
    {
        "application_name",
        "dbname",
        "gsslib",
        "host",
        "krbsrvname",
        "options",
        "passfile",
        "password",
        "port",
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "sslrootcert",
        "target_session_attrs",
        "user",
    }
)

# How libpq maintains a connection: dropping them makes no connection less safe. asyncpg would send
# them to PostgreSQL as settings, which rejects the connection.
_DROPPED_FOR_ASYNCPG = frozenset(
    {
        "client_encoding",
        "connect_timeout",
        "fallback_application_name",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
    }
)
_OPTIONAL = ("prefer", "disable")  # as channel_binding=prefer, gssencmode=disable


def parameters(url: str) -> dict[str, str]:
    """Return the connection parameters in a libpq URL, as libpq itself parses it.

    Raises InvalidDatabaseURL.
    """
    try:
        if url.partition("?")[0].count("@") > 1:  # or messages would quote a part of the password
            raise ValueError
        found = {name: str(value) for name, value in conninfo_to_dict(url).items()}
        for port in filter(None, found.get("port", "").split(",")):
            int(port)
    except (psycopg.ProgrammingError, ValueError):
        # Their messages quote the part that cannot be parsed, which may be the password.
        raise InvalidDatabaseURL(
            "the database URL cannot be read; expected postgresql://user:password@host:port/"
            "database?option=value, with libpq's options, and special characters percent-encoded "
            "(@ as %40, % as %25)"
        ) from None
    return found


def shown(url: str) -> str:
    """Return the database, host and user in a libpq URL, for messages: without the password.

    Raises InvalidDatabaseURL.
    """
    given = parameters(url)
    return f"{given.get('dbname', '(default)')} at {given.get('host', '(default)')}" + (
        f", as {given['user']}" if "user" in given else ""
    )


def asyncpg_dsn(url: str) -> str:
    """Return a libpq URL as asyncpg parses it.

    Raises InvalidDatabaseURL, also when the URL requires what asyncpg does not support.
    """
    kept = {}
    for name, value in parameters(url).items():
        if name in _ASYNCPG_KNOWS:
            kept[name] = value
        elif name not in _DROPPED_FOR_ASYNCPG and value not in _OPTIONAL:
            raise InvalidDatabaseURL(
                f"the database URL demands {name}={value}, which asyncpg cannot do; remove it"
            )
    for name, spelled in (("host", _bracketed), ("port", _or_default)):
        if name in kept:  # a list, for several hosts
            kept[name] = ",".join(map(spelled, kept[name].split(",")))
    return f"postgresql://?{urlencode(kept)}"


def _or_default(port: str) -> str:
    return port or "5432"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("/") else host
