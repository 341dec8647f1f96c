"""The checks of ``listings doctor``: what is wrong with an installation, and how to correct it."""

from collections.abc import Iterator

from persistence.status_words import StatusWords
from server.process.doctor.callers import examine_tls, examine_tokens
from server.process.doctor.database import examine_database
from server.process.doctor.findings import OK, PROBLEM, SKIPPED, WARNING, Finding
from server.process.doctor.port import examine_port
from server.process.doctor.telemetry import examine_telemetry
from server.process.status_words import described, read_status_words
from server.settings import Settings, SettingsError, variable

__all__ = ["OK", "PROBLEM", "SKIPPED", "WARNING", "Finding", "examine"]


def examine() -> Iterator[Finding]:
    """Yield the finding of each check. A problem does not stop those after it.

    An embedded server that exists is started for the time of its checks.
    """
    settings, faults = Settings.check()
    for fault in faults.values():
        yield Finding(PROBLEM, "configuration", fault)
    if not faults:
        given = sorted(variable(name) for name in settings.model_fields_set)
        text = f"{', '.join(given) or 'nothing'} set, the rest default"
        if unknown := Settings.unknown_variables():
            text += f"; not settings, and ignored: {', '.join(unknown)}"
        yield Finding(OK, "configuration", text)
    yield examine_telemetry()
    if faults.keys() & {variable("jwks"), variable("jwt_issuer"), variable("jwt_audience")}:
        yield Finding(SKIPPED, "tokens", "until their settings are corrected")
    else:
        yield examine_tokens(settings.jwks)
    if faults.keys() & {variable("tls_cert"), variable("tls_key"), variable("tls_client_ca")}:
        yield Finding(SKIPPED, "TLS", "until its settings are corrected")
    else:
        yield examine_tls(settings)
    words, finding = _examine_words(settings)
    yield finding
    if variable("database_url") in faults:
        yield Finding(SKIPPED, "database", "until LISTINGS_DATABASE_URL is corrected")
    else:
        yield from examine_database(settings, words)
    if faults.keys() & {variable("host"), variable("port")}:
        yield Finding(SKIPPED, "port", "until LISTINGS_HOST and LISTINGS_PORT are corrected")
    else:
        yield examine_port(settings)


def _examine_words(settings: Settings) -> tuple[StatusWords | None, Finding]:
    try:
        words = read_status_words(settings)
    except SettingsError as error:
        return None, Finding(PROBLEM, "words", str(error))
    return words, Finding(OK, "words", described(settings, words))
