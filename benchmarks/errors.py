"""The error that ends a run."""


class BenchmarkError(Exception):
    """The run cannot continue, and its figures are invalid. The message has the reason."""
