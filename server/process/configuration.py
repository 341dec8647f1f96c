"""Settings and logging, as each process of the service starts with them."""

import structlog

from server.observability import logging
from server.settings import Settings, variable


def configure(**given: object) -> Settings:
    """Read the settings, set up logging by them, and warn of variables that are no settings.

    Each one in ``given`` takes the place of the variable. Raises SettingsError.
    """
    settings = Settings.read().model_copy(update=given)
    logging.configure(settings.log_level, settings.log_format)
    for name in Settings.unknown_variables():
        structlog.get_logger().warning("unknown setting ignored", name=name)
    if settings.status_guard != "on":
        structlog.get_logger().warning(
            "events that would overwrite a payment are written",
            name=variable("status_guard"),
            value=settings.status_guard,
        )
    return settings
