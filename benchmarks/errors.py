"""What ends a run."""


class BenchmarkError(Exception):
    """The run cannot go on, and its figures are worth nothing. The message says why."""
