"""A terminal that can be closed."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def terminal() -> Iterator[tuple[str, Callable[[], None]]]:
    """Open one, and yield the path of its device and what closes it."""
    ours, theirs = os.openpty()
    still_open = [ours]

    def close() -> None:
        os.close(still_open.pop())

    try:
        yield os.ttyname(theirs), close
    finally:
        os.close(theirs)
        while still_open:
            close()
