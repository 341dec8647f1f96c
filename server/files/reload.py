"""Files that are read again after they were replaced."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from server.files.watch import FileWatcher
from server.settings import SettingsError

_log = logging.getLogger(__name__)


class FileReloader:
    """Files that belong together, and the function that puts them to use."""

    def __init__(self, paths: Iterable[Path], read: Callable[[], str]) -> None:
        """Read the files for the first time; raises what ``read`` raises.

        ``read`` puts the content of the files to use and returns what to log about it. If the
        content is unusable, it changes nothing and raises SettingsError.
        """
        self._watcher = FileWatcher(paths)  # before the first read, so that no change is missed
        self._read = read
        self._fault = ""
        read()

    def poll(self) -> None:
        """Read the files if they have changed, or if the last read failed."""
        if self._watcher.changed() or self._fault:
            self._read_again()

    def reload(self) -> None:
        """Read the files in any case; a fault is logged even if it was logged before."""
        self._fault = ""
        self._read_again()

    def _read_again(self) -> None:
        try:
            message = self._read()
        except SettingsError as error:
            if str(error) != self._fault:
                _log.warning("%s; the files read before stay in use, retrying", error)
            self._fault = str(error)
        else:
            self._fault = ""
            _log.info(message)
