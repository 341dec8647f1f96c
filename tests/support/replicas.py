"""Two services on one database, each restarted on its own port."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support import service


class Replica:
    """A service that is restarted on the same port."""

    def __init__(self, database_url: str, directory: Path, **settings: str) -> None:
        self._database_url = database_url
        self._directory = directory
        self._settings = settings
        self._stack = ExitStack()
        self._starts = itertools.count()
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it, on the port that it had before."""
        log = self._directory / f"log.{next(self._starts)}"
        settings = self._settings | {"port": str(self.port)}
        running = service.running(self._database_url, log, **settings)
        self.service = self._stack.enter_context(running)
        self.port = self.service.port

    def restart(self) -> None:
        """Stop it by SIGTERM, and start it again."""
        assert self.service.stop() == 0
        assert "Traceback" not in self.service.log.read_text()
        self.close()
        self.start()

    def close(self) -> None:
        """End it."""
        self._stack.close()


@contextmanager
def two_replicas(database_url: str, directory: Path, **settings: str) -> Iterator[list[Replica]]:
    """Run two replicas with the same settings."""
    with ExitStack() as stack:
        replicas = []
        for name in ("one", "other"):
            (directory / name).mkdir()
            replicas.append(Replica(database_url, directory / name, **settings))
            stack.callback(replicas[-1].close)
        yield replicas
