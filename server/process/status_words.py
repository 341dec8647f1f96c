"""The words of payment statuses, as LISTINGS_PAYMENT_STATUSES has them."""

from typing import TYPE_CHECKING

from persistence.errors import InvalidStatusWords
from persistence.status_words import StatusWords
from server.settings import Settings, SettingsError, variable

if TYPE_CHECKING:
    from persistence.reclassification import Reclassification


def read_status_words(settings: Settings) -> StatusWords:
    """Return the table in force. Raises SettingsError, which names the variable, file and line."""
    try:
        return StatusWords.read(settings.payment_statuses)
    except InvalidStatusWords as error:
        raise SettingsError(f"{variable('payment_statuses')}: {error}") from None


def described(settings: Settings, words: StatusWords) -> str:
    """Return what the table has, with the file and the digest, for messages."""
    own = f", with those of {settings.payment_statuses}" if settings.payment_statuses else ""
    return f"{len(words.meanings)} for payment statuses{own}; digest {words.digest}"


async def apply_words(url: str, words: StatusWords) -> "Reclassification":
    """Classify orders anew, if all processes of the service that show their table have this one.

    ``url`` is that of the owner. Raises PersistenceError.
    """
    from persistence.diagnostics.status_words import check_processes
    from persistence.maintenance import owner_session
    from persistence.reclassification import reclassify

    async with owner_session(url) as connection:
        await check_processes(connection, words)
    return await reclassify(url, words)
