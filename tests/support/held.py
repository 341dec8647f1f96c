"""Resources that are opened once in a process that runs tests, and kept until its end."""

from contextlib import ExitStack

until_the_end = ExitStack()
"""Closed by ``conftest`` after the last test of this process."""
