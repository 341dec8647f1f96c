"""The database that the settings name, checked on one connection."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Final, NamedTuple

from persistence import diagnostics, embedded
from persistence.diagnostics import (
    Advice,
    Connection,
    connections,
    durability,
    epochs,
    migrations,
    object_checks,
    pooling,
    public,
    replication,
    rights,
    server,
    status_words,
)
from persistence.errors import EmbeddedPostgresError, PersistenceError
from persistence.status_words import StatusWords
from server.process.database import service_url
from server.process.doctor.findings import OK, PROBLEM, SKIPPED, WARNING, Finding
from server.settings import Settings, variable

_BESIDE_POOL: Final = 2
"""Connections of a process beside its pool: those of ``watch`` and ``health_probe``."""


class _Check(NamedTuple):
    subject: str
    run: Callable[[Connection], Awaitable[str]]
    """Returns what it found, or raises a PersistenceError: Advice for a warning."""
    needs: tuple[str, ...] = ()
    """The subjects without which it would find what is not so."""


def examine_database(settings: Settings, words: StatusWords | None) -> Iterator[Finding]:
    """Yield the findings of the database, and of the directory of an embedded one.

    ``words`` is None when they cannot be read.
    """
    if settings.database_url is None and not embedded.exists(settings.data_dir):
        text = f"{settings.data_dir} is not there yet; `listings serve` makes it"
        yield Finding(OK, "data directory", text)
        yield Finding(SKIPPED, "database", "until it has been made")
        return
    try:
        with service_url(settings) as url:
            if settings.database_url is None:
                text = f"{settings.data_dir} is usable, and its PostgreSQL starts"
                yield Finding(OK, "data directory", text)
            yield from asyncio.run(_examine(settings, words, url))
    except EmbeddedPostgresError as error:
        yield Finding(PROBLEM, "data directory", " ".join(str(error).split()))
        yield Finding(SKIPPED, "database", "until the data directory is usable")


async def _examine(settings: Settings, words: StatusWords | None, url: str) -> list[Finding]:
    checks = [*_checks(settings, url), *_checks_of_words(words)]
    failed = {"words"} if words is None else set()
    try:
        async with diagnostics.connected(url, timeout=settings.connect_timeout) as connection:
            return _merged([await _run(check, connection, failed) for check in checks])
    except PersistenceError as error:
        others = ", ".join(check.subject for check in checks[1:])
        return [
            Finding(PROBLEM, checks[0].subject, str(error)),
            Finding(SKIPPED, others, "until the database can be reached"),
        ]


def _checks(settings: Settings, url: str) -> Iterator[_Check]:
    processes, pool = settings.worker_count, settings.pool_size
    number = processes * (pool + _BESIDE_POOL)
    explained = f"{processes} x ({pool} of the pool + {_BESIDE_POOL})"
    prepared = settings.prepared_statements
    yield _Check("database", server.check_server)
    yield _Check("writing", server.check_writable)
    yield _Check("rights", rights.check_rights)
    if settings.database_url is not None:  # the embedded one is used by nothing else
        yield _Check("PUBLIC", public.check_public)
    yield _Check(
        "connections",
        partial(connections.check_connections, needed=number, explained=explained),
    )
    yield _Check(
        "prepared statements",
        partial(pooling.check_prepared_statements, url=url, are_used=prepared),
    )
    yield _Check("durability", durability.check_durability)
    yield _Check("replication", replication.check_replication)
    yield _Check("schema", migrations.check_migrations, ("rights",))
    yield _Check("objects", object_checks.check_objects, ("rights", "schema"))
    yield _Check("history", epochs.check_history, ("rights", "schema", "objects"))
    for subject, name in (
        ("direct URL", "direct_database_url"),
        ("migration URL", "migration_database_url"),
    ):
        if given := getattr(settings, name):
            yield _Check(
                subject,
                partial(
                    server.check_same,
                    url=given.get_secret_value(),
                    variable=variable(name),
                    timeout=settings.connect_timeout,
                ),
            )


def _checks_of_words(words: StatusWords | None) -> Iterator[_Check]:
    for subject, check in (
        ("classification", status_words.check_applied),
        ("unknown words", status_words.check_unknown_words),
        ("processes", status_words.check_processes),
    ):
        # Without words, it is skipped.
        yield _Check(subject, partial(check, words=words), ("words", "rights", "schema"))  # type: ignore[arg-type]


async def _run(check: _Check, connection: Connection, failed: set[str]) -> Finding:
    """Run a check, unless what it needs has ``failed``, to which it is added if it fails."""
    if causes := [subject for subject in check.needs if subject in failed]:
        until = f"until the problem of {' and '.join(causes)} is solved"
        return Finding(SKIPPED, check.subject, until)
    try:
        return Finding(OK, check.subject, await check.run(connection))
    except Advice as advice:
        return Finding(WARNING, check.subject, str(advice))
    except PersistenceError as error:
        text = str(error)
    except Exception as error:
        text = (
            f"{error or type(error).__name__}. The check itself failed: look into PostgreSQL's log"
        )
    failed.add(check.subject)
    return Finding(PROBLEM, check.subject, text)


def _merged(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings; in one, those that follow each other and are skipped for one reason."""
    merged: list[Finding] = []
    for finding in findings:
        last = merged[-1] if merged else None
        if last and last.verdict == finding.verdict == SKIPPED and last.text == finding.text:
            merged[-1] = Finding(SKIPPED, f"{last.subject}, {finding.subject}", finding.text)
        else:
            merged.append(finding)
    return merged
