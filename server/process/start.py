"""The start of ``listings serve``: what can be refused at once is checked before the database.

The order is: telemetry, words of payment statuses, files of certificates and keys, the address, the
database. Connections that clients make before the database is ready wait in the listener's queue.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import structlog

from server.auth.bind_policy import check_bind_policy
from server.auth.jwks_client import JwksClient
from server.http.sockets import base_url, listen
from server.observability import telemetry
from server.process import garbage
from server.process.certificates import TLS
from server.process.database import served_url
from server.process.metric_files import shared_metrics
from server.process.status_words import read_status_words
from server.process.supervisor import serve_with_workers
from server.settings import Settings


def start(settings: Settings, announce: Callable[[str, TLS | None], object]) -> None:
    """Serve until SIGTERM or SIGINT, in as many processes as the settings say.

    ``announce`` gets the base URL, and TLS if it is on, once connections are accepted. Raises
    SettingsError, CannotListen, PersistenceError or WorkersFailed.
    """
    telemetry.wanted()
    # Read once for all processes: a worker that is replaced does not depend on the files any more.
    tls, keys = TLS.from_settings(settings), JwksClient.from_settings(settings)
    if tls is not None:
        # They are the service's: browsers compare them with the name in the URL.
        hosts = (*settings.allowed_hosts, *tls.certificate.names)
        settings = settings.model_copy(update={"allowed_hosts": hosts})
    words = read_status_words(settings)
    listeners = listen(settings.host, settings.port, settings.worker_count)
    if warning := check_bind_policy(settings, listeners[0]):
        structlog.get_logger().warning(warning)
    ready = partial(announce, base_url(listeners[0], "https" if tls else "http"), tls)
    with ExitStack() as stack:
        if len(listeners) > 1:
            stack.enter_context(shared_metrics())
        from server.process.run import Setup, run

        url = stack.enter_context(served_url(settings))
        setup = Setup(settings, url, tls, keys, words)
        if len(listeners) == 1:
            run(setup, listeners[0], ready)
        else:
            garbage.resume_collection()
            serve_with_workers(partial(run, setup), listeners, ready, settings.shutdown_timeout)
