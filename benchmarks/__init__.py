"""The service measured beside what its users would write instead: ``python -m benchmarks``."""
