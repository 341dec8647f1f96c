"""Detecting that files were replaced, by polling."""

from collections.abc import Iterable
from pathlib import Path


class FileWatcher:
    """Compares the inode, modification time and size of files between two polls."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._seen = self._stat()

    def changed(self) -> bool:
        """Return whether a file differs from the previous call, or from the constructor's."""
        before, self._seen = self._seen, self._stat()
        return self._seen != before

    def _stat(self) -> list[tuple[int, int, int] | None]:
        return [_identity(path) for path in self._paths]


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()  # follows links, by which Kubernetes replaces mounted files
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
