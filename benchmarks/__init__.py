"""Benchmarks of the service and of alternatives to it: ``python -m benchmarks``."""
