"""What is made once in a process that runs tests, and kept until its tests are over."""

from contextlib import ExitStack

until_the_end = ExitStack()
"""Closed by ``conftest`` after the last test of this process."""
