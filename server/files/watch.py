"""Files that may be replaced while the service runs."""

from collections.abc import Iterable
from pathlib import Path


class WatchedFiles:
    """Some files, looked at now and then."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._seen = self._look()

    def have_changed(self) -> bool:
        """Return whether one of them is another than when this was called, or made, before."""
        before, self._seen = self._seen, self._look()
        return self._seen != before

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_state(path) for path in self._paths]


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()  # through links, which is how Kubernetes replaces files
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
