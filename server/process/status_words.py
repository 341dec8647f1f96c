"""The words of payment statuses, as LISTINGS_PAYMENT_STATUSES has them."""

from persistence.errors import InvalidStatusWords
from persistence.status_words import StatusWords
from server.settings import Settings, SettingsError, variable


def read_status_words(settings: Settings) -> StatusWords:
    """Return the table in force. Raises SettingsError, which names the variable, file and line."""
    try:
        return StatusWords.read(settings.payment_statuses)
    except InvalidStatusWords as error:
        raise SettingsError(f"{variable('payment_statuses')}: {error}") from None
