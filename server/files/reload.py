"""Files that are read again when they have been replaced."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from server.files.watch import WatchedFiles
from server.settings import SettingsError

_log = logging.getLogger(__name__)


class ReloadedFiles:
    """Some files that belong together, and what puts them to use."""

    def __init__(self, paths: Iterable[Path], read: Callable[[], str]) -> None:
        """Read them for the first time.

        ``read`` puts what is in the files to use, and returns what to log about that; if it cannot
        be used, it changes nothing and raises SettingsError, and so does this.
        """
        self._watched = WatchedFiles(paths)  # before they are read, lest a change be missed
        self._read = read
        self._fault = ""
        read()

    def look(self) -> None:
        """Read the files if they have changed, or could not be used the last time."""
        if self._watched.have_changed() or self._fault:
            self._read_again()

    def reload(self) -> None:
        """Read the files in any case."""
        self._fault = ""
        self._read_again()

    def _read_again(self) -> None:
        try:
            told = self._read()
        except SettingsError as error:
            if str(error) != self._fault:
                _log.warning("%s. What was read before stays in use; trying again", error)
            self._fault = str(error)
        else:
            self._fault = ""
            _log.info(told)
